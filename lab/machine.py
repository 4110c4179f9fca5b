"""The machine at hand: which device to compute on, and what a record says about where it was made."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import time
from collections.abc import Callable

import torch
import torchvision


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or, where None, CUDA, then MPS, then the CPU, the first that there is.

    Raises ValueError for a device that this machine or this torch does not have.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(1, device=picked)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by device and build
        raise ValueError(f"device={device!r} is not to be had here: {error}") from error
    return picked


def machine(device: torch.device) -> dict[str, str | int]:
    """What a result is measured on: processor or GPU, threads, and the versions that matter."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str subclass, which a checkpoint could not hold
        "torchvision": str(torchvision.__version__),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def number_format(device: torch.device, dtype: torch.dtype | None = None) -> torch.dtype:
    """The number format that convolutions compute in: `dtype` where given, else what the processor has.

    bfloat16 on a CPU with AVX-512 bf16 or AMX instructions and on CUDA from Ampere on, float16 on older
    CUDA, float32 elsewhere: without such instructions, convolutions in bfloat16 fall to a reference
    path that is tens of times slower than float32.
    """
    if dtype is not None:
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype={dtype!r} must be torch.float32, torch.bfloat16 or torch.float16")
        return dtype
    if device.type == "cuda":  # older ones imitate bfloat16, slowly
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    # The first asks the library that convolves, which can be told to use less than the processor has.
    onednn = torch.backends.mkldnn.is_available()
    if device.type == "cpu" and onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32


@functools.cache
def keep_freed_memory() -> None:
    """Have freed memory stay with this process, ready for the next step; for glibc, elsewhere nothing.

    glibc gives large blocks back to the system as soon as they are free, and a training step that takes
    them anew waits for thousands of page faults: a tenth to a quarter of its time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself, and so unmapped when freed
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes free at the heap's end that are kept


def clocked(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes on `device`."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device is done; without it, a clock sees how long work takes to be queued."""
    if device.type != "cpu":
        {"cuda": torch.cuda, "mps": torch.mps}[device.type].synchronize()


MATMUL_SIZE = {"cuda": 8192, "other": 2048}  # rows; where the rate has about reached its maximum


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product, now: the measure that makes a busy machine's times comparable."""
    size = MATMUL_SIZE["cuda" if device.type == "cuda" else "other"]
    matrix = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(dtype)
    return 2e-9 * size**3 / min(clocked(lambda: matrix @ matrix, device) for _ in range(3))
