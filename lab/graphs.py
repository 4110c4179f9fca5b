"""Training steps on an NVIDIA GPU, recorded as CUDA graphs and replayed: `Replay`.

A step of a small network is some hundreds of short kernels, and the processor takes longer to start them
than the GPU to run them. A recorded step is started at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model import Net

WARM = 3  # steps before one is recorded, in which libraries choose and load their kernels

Work = Callable[[Tensor, Tensor], Sequence[Tensor]]
Recorded = tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Sequence[Tensor]]  # images, labels and results of it


def replayable(net: nn.Module, device: torch.device) -> bool:
    """Whether every step of `net` on `device` starts the same kernels, so that a recorded one stands for all.

    That is known of our own networks, without anybody's hooks, on an NVIDIA GPU.
    """
    if device.type != "cuda" or torch.version.cuda is None or type(net) is not Net:
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(module, name) for module in net.modules() for name in hooks)


class Replay:
    """Takes the steps of a run: records one for each shape of batch, and replays it from then on.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs describes it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        """optimizer: of the run; its learning rates may change from step to step, and nothing else of it."""
        self.optimizer = optimizer
        self.rates: list[Tensor] = []
        self.stream = torch.cuda.Stream()
        self.seen: dict[tuple, int] = {}
        self.recorded: dict[tuple, Recorded] = {}

    def __call__(self, work: Work, images: Tensor, labels: Tensor) -> Sequence[Tensor]:
        """What `work` returns for the batch; a replayed step overwrites the tensors of the one before.

        work: takes one step of the optimizer on images and labels on the GPU, and returns tensors. It must
        not wait for the GPU, and be the same for all batches of one shape.
        """
        key = images.shape, images.stride(), images.dtype, labels.shape, labels.dtype
        if key not in self.recorded:
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] <= WARM:
                return self._warm(work, images, labels)
            self.recorded[key] = self._record(work, images, labels)
        graph, own_images, own_labels, results = self.recorded[key]
        own_images.copy_(images)
        own_labels.copy_(labels)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        graph.replay()
        return results

    def _warm(self, work: Work, images: Tensor, labels: Tensor) -> Sequence[Tensor]:
        # On the stream of the recording: libraries keep a workspace for each stream.
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = work(images, labels)
        current.wait_stream(self.stream)
        for tensor in (images, labels):
            tensor.record_stream(self.stream)
        for tensor in results:
            tensor.record_stream(current)
        return results

    def _record(self, work: Work, images: Tensor, labels: Tensor) -> Recorded:
        groups = self.optimizer.param_groups
        self.rates = self.rates or [torch.zeros((), device=images.device) for _ in groups]
        own_images, own_labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        before = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self.rates, strict=True):
                group |= {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                results = work(own_images, own_labels)
        finally:
            for group, values in zip(groups, before, strict=True):
                group |= values
        return graph, own_images, own_labels, results
