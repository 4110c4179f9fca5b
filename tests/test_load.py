"""Many runs in one process: what they leave behind."""

import ctypes
import gc
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import lab.machine
from lab.data import stand_in
from lab.experiment import Experiment, run
from lab.recipes import Recipe

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs Linux's /proc and glibc's malloc_trim",
)

STAGES = (((8, "standard", 2), (8, "depthwise_separable", 1)),)


def left() -> dict[str, int]:
    """What this process holds: bytes of memory, open files, threads, child processes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what is kept would fill memory that was freed, and not be seen
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": len(multiprocessing.active_children()),
    }


def left_after_runs(folder: Path) -> list[dict[str, int]]:
    lab.machine.MATMUL_SIZE = {"cuda": 64, "other": 64}  # as conftest.py does in the process of the tests
    data = stand_in(64, 32)
    recipe = Recipe(epochs=1, batch_size=32, net={"stages": STAGES})
    found = []
    for seed in range(100):
        norm = ("batch", "layer", "group", "instance", "none")[seed % 5]
        experiment = Experiment("many", recipe, norm=norm, dataset="stand-in", seed=seed)
        run(experiment, folder, data=data, device="cpu", threads=1, progress=False)
        if seed in (24, 99):
            found.append(left())
    return found


def test_100_runs_leave_memory_files_threads_and_processes_as_they_were(tmp_path):
    # In a new process: the memory of this one also changes by what earlier tests left to be collected.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        early, late = pool.submit(left_after_runs, tmp_path).result()
    growth = late.pop("memory") - early.pop("memory")
    assert late == early
    assert growth < 2 * 2**20  # 27 kB a run
    assert len(list(tmp_path.iterdir())) == 3 * 100
