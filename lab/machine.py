"""The current machine: which device to compute on, and what a record says about where it was made."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The requested device, or, for None, the first available one of CUDA, MPS and the CPU.

    Raises ValueError for a device that is not available on this machine or in this build of torch.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(1, device=picked)
    except TypeError:
        raise ValueError(f"device={device!r} must be a name, such as 'cpu', or a torch.device") from None
    except (RuntimeError, AssertionError) as error:  # depends on device and build
        raise ValueError(f"device={device!r} is not available: {error}") from error
    if picked.type == "meta":
        raise ValueError(f"device={device!r} computes nothing; choose a device that does")
    return picked


def machine(device: torch.device) -> dict[str, str | int]:
    """What a result is measured on: processor or GPU, threads, and versions. Plain JSON data."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "instructions": _instructions(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # The version's own type is a subclass of str, which a checkpoint cannot contain.
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def file_stem(host: Mapping[str, Any], *words: str) -> str:
    """A name for a file with measurements: what `machine` says of the host, then `words`."""
    told = f"{host['device']} {host['processor']} {host.get('instructions', '')} {host['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", " ".join((told, *words)).lower()).strip("-")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _instructions() -> str:
    """The widest instructions that PyTorch can use: processors of one name differ in them.

    An environment variable that restricts oneDNN to fewer is named.
    """
    found = torch.backends.cpu.get_cpu_capability()
    for name, present in (
        ("bf16", torch.cpu._is_avx512_bf16_supported()),
        ("AMX", torch.cpu._is_amx_tile_supported()),
    ):
        found += f" {name}" * present
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{found}, ONEDNN_MAX_CPU_ISA={limit}" if limit else found


def number_format(device: torch.device, dtype: torch.dtype | None = None) -> torch.dtype:
    """The number format of convolutions: `dtype` if given, otherwise the one that the hardware is made for.

    It need not be the fastest, which `fastest_format` finds by timing. It is bfloat16 on a CPU with AVX-512
    bf16 or AMX instructions and on CUDA since Ampere, float16 on older CUDA, and float32 elsewhere: without
    such instructions, convolutions in bfloat16 use a reference implementation that is tens of times slower
    than float32.

    Raises ValueError for a `dtype` other than these three.
    """
    if dtype is not None:
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype={dtype!r} must be torch.float32, torch.bfloat16 or torch.float16")
        return dtype
    if device.type == "cuda":  # older GPUs emulate bfloat16, slowly
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    # Ask oneDNN as well: a user can restrict it to fewer instructions than the processor has.
    onednn = torch.backends.mkldnn.is_available()
    if device.type == "cpu" and onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32


@functools.cache
def keep_freed_memory() -> None:
    """Keep freed memory in this process, ready for the next step. Works for glibc; elsewhere does nothing.

    glibc returns large blocks to the system as soon as they are freed. A training step then allocates
    them again and spends a tenth to a quarter of its time on page faults. The setting stays for the life
    of the process.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own, which free would unmap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: free bytes to keep at the end of the heap


def available_memory() -> int | None:
    """The bytes of memory that programs can still get; None if the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # such as on Windows
        return None


def clocked(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call of `work` takes on `device`."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work; a clock would otherwise time the queueing only."""
    if device.type != "cpu":
        {"cuda": torch.cuda, "mps": torch.mps}[device.type].synchronize()


MATMUL_SIZE = {"cuda": 8192, "other": 2048}  # rows; the rate is near its maximum from here on


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product at this moment, the best of three.

    Times from a busy machine become comparable when they are multiplied by this rate.
    """
    size = MATMUL_SIZE["cuda" if device.type == "cuda" else "other"]
    matrix = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(dtype)
    return 2e-9 * size**3 / min(clocked(lambda: matrix @ matrix, device) for _ in range(3))
