"""Optimizers and learning-rate schedules from plain values; each optimizer is a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lab.checks import as_number

# ---- Schedules: a factor on the learning rate, from the share of the steps done, in [0, 1] ----------


def constant(progress: float) -> float:
    return 1.0


def linear(progress: float) -> float:
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Loshchilov and Hutter, arXiv 1608.03983, without restarts."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine}

# ---- Muon ------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with an orthogonalized update, for the weights of hidden convolutions.

    A convolution's weight is treated as a matrix (out_channels, in_channels * kernel ** 2) and kept at
    the norm sqrt(out_channels), which a normalization after it makes harmless. Since the update is
    orthogonal, only the learning rate sets its size, and a low momentum is enough.

    Source: Jordan et al., "Muon", https://kellerjordan.github.io/posts/muon; the fixed norm as in
    cifar10-airbench, arXiv 2404.00498.
    """

    def __init__(self, params, lr: float = 0.15, momentum: float = 0.6):
        lr, momentum = as_number("lr", lr, 0), as_number("momentum", momentum, 0, 1, below=True)
        super().__init__(params, {"lr": lr, "momentum": momentum})
        if any(weight.ndim < 2 for group in self.param_groups for weight in group["params"]):
            raise ValueError("Muon is for weights with at least two dimensions, not for biases or norms")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. closure: recomputes the loss, which is then returned."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["momentum"])
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, lr: float | Tensor, momentum: float) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].mul_(momentum).add_(gradient)
        update = gradient.add(state["momentum"], alpha=momentum)
        weight.mul_(len(weight) ** 0.5 / (weight.norm() + 1e-7))
        update = orthogonalized(update.flatten(1)).view_as(weight)
        if isinstance(lr, Tensor):  # on the weight's device, where it may change
            weight.addcmul_(update, lr, value=-1)
        else:
            weight.add_(update, alpha=-lr)


def orthogonalized(matrix: Tensor, steps: int = 3) -> Tensor:
    """Approximate the nearest matrix whose singular values are 1, of the same shape (rows, columns).

    Newton-Schulz iterations with Muon's quintic (3.4445, -4.7750, 2.0315) bring the singular values to
    about 0.7 to 1.2 and need only matrix products. Three steps are enough here.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide is matrix else x.T


class Combined(torch.optim.Optimizer):
    """Several optimizers, each with its own parameters, used as one.

    Groups and state are shared with the parts, so schedulers, `GradScaler` and checkpoints that act on
    this optimizer act on all of them.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        if not parts:
            raise ValueError("Combined() needs at least one optimizer")
        self.parts: tuple[torch.optim.Optimizer, ...] = ()  # until the groups are in place
        groups = [group for part in parts for group in part.param_groups]
        # Schedulers that cycle the momentum (OneCycleLR) look for it among the defaults.
        defaults = {"lr": parts[-1].defaults["lr"]}
        for name in ("momentum", "betas"):  # at most one of them: schedulers would cycle only the betas
            having = [part.defaults[name] for part in parts if name in part.defaults]
            if having and len(defaults) == 1:
                defaults[name] = having[0]
        super().__init__(groups, defaults)
        self.parts = parts
        self._share()

    def _share(self) -> None:
        """Give the parts this optimizer's groups, in order, and its state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with each part. closure: recomputes the loss, which is then returned."""
        loss = _evaluated(closure)
        for part in self.parts:
            part.step()
        return loss

    def add_param_group(self, param_group: dict) -> None:
        """Add a group; the last part trains it."""
        super().add_param_group(param_group)
        if self.parts:
            self.parts[-1].add_param_group(param_group)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"parts": self.parts}


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


# ---- Optimizers by name ----------------------------------------------------------------------------


def is_weight(parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a convolution or a linear layer, not a bias or part of a norm."""
    return parameter.ndim >= 2


def sgd(
    net: nn.Module, *, lr: float, lr_rest: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; `lr_rest` is not used."""
    groups = _decayed_groups(net.parameters(), weight_decay)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:
        optimizer.register_step_pre_hook(_start_momentum_at_zero)
    return optimizer


def _start_momentum_at_zero(optimizer: torch.optim.Optimizer, *_) -> None:
    # Otherwise, if GradScaler skips the first step, fused SGD leaves the buffers without values.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def adamw(
    net: nn.Module, *, lr: float, lr_rest: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW with PyTorch's betas; `lr_rest` and `momentum` are not used."""
    return torch.optim.AdamW(_decayed_groups(net.parameters(), weight_decay), lr=lr, fused=True)


def muon(
    net: nn.Module, *, lr: float, lr_rest: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Muon for the hidden convolutions; AdamW at `lr_rest` for norms, biases and the last weight."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    hidden = [parameter for parameter in trained if is_weight(parameter)][:-1]
    chosen = set(map(id, hidden))
    rest = [parameter for parameter in trained if id(parameter) not in chosen]
    parts: list[torch.optim.Optimizer] = [Muon(hidden, lr, momentum)] if hidden else []
    groups = _decayed_groups(rest, weight_decay)
    return Combined(*parts, torch.optim.AdamW(groups, lr=lr_rest, betas=(0.9, 0.95), fused=True))


def _decayed_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if is_weight(p)], "weight_decay": weight_decay},
        {"params": [p for p in trained if not is_weight(p)], "weight_decay": 0.0},
    ]


# From a name to a callable (net, *, lr, lr_rest, momentum, weight_decay) -> optimizer.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"muon": muon, "sgd": sgd, "adamw": adamw}
