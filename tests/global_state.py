"""The global state that a call must leave as it was: random states, default dtype, threads and the like."""

import os
import random
import socket
import warnings
from contextlib import contextmanager

import numpy as np
import torch


def _global_state() -> dict:
    return {
        "random state of torch": torch.get_rng_state().tolist(),
        "random state of NumPy": repr(np.random.get_state()),
        "random state of Python": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "cuDNN": (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "socket timeout": socket.getdefaulttimeout(),
        "warning filters": list(warnings.filters),
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
    }


@contextmanager
def unchanged():
    """Fail if the block changes any of these."""
    before = _global_state()
    yield
    after = _global_state()
    assert [name for name in before if before[name] != after[name]] == []
