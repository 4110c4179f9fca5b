"""lab/machine.py: devices, number formats, clocks, and what a record says about the machine."""

import json
import os
import platform
import subprocess
import sys
import time

import pytest
import torch
from global_state import unchanged

import lab.machine
from lab.machine import (
    available_memory,
    clocked,
    keep_freed_memory,
    machine,
    matmul_rate,
    number_format,
    pick_device,
    synchronize,
)

CPU = torch.device("cpu")


def test_a_requested_device_is_the_one_returned():
    assert pick_device("cpu") == CPU
    assert pick_device(CPU) == CPU


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_a_device_that_is_not_available_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=f"device='{name}' is not available: "):
        pick_device(name)


def test_cuda_is_preferred_and_the_cpu_is_last(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_requested_number_format_is_the_one_used(dtype):
    assert number_format(CPU, dtype) == dtype


def test_other_number_formats_are_refused_by_name():
    with pytest.raises(ValueError, match=r"torch\.int8"):
        number_format(CPU, torch.int8)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_on_cuda_the_format_is_bfloat16_unless_the_gpu_only_emulates_it(monkeypatch, native, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    assert number_format(torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("library", "processor", "expected"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_bfloat16_needs_both_the_library_and_the_processor(monkeypatch, library, processor, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: processor)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert number_format(CPU) == expected


def test_a_torch_without_onednn_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert number_format(CPU) == torch.float32


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 processors have AVX2")
def test_a_processor_limited_to_avx2_trains_the_minute_network_in_float32():
    script = (
        "import json\n"
        "from lab.data import loaders_from, stand_in\n"
        "from dataclasses import replace\n"
        "from lab.recipes import RECIPES\n"
        "from lab.training import fit\n"
        "from model import Net\n"
        "recipe = replace(RECIPES['minute'], epochs=1)\n"
        "loaders = loaders_from(stand_in(1_000, 100), recipe.batch_size, device='cpu')\n"
        "history = fit(Net(**recipe.net), *loaders, recipe, device='cpu', progress=False)\n"
        "print(json.dumps([history.machine['dtype'], history.train_loss[0]]))"
    )
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=older, capture_output=True, text=True, check=True
    )
    dtype, loss = json.loads(ended.stdout)
    assert dtype == "float32"
    assert 0 < loss < 5


FAULTS = """
import resource, sys, torch
from lab.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():  # page faults while 64 MB are allocated and freed 20 times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_kept_and_reused_without_page_faults():
    def faults(what):
        command = [sys.executable, "-c", FAULTS, what]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("give back") / 10


def test_without_glibc_keep_freed_memory_does_nothing(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)  # on Windows there is nothing to call
    keep_freed_memory.__wrapped__()


def test_the_record_is_plain_data_with_the_versions():
    record = machine(CPU)
    assert json.loads(json.dumps(record)) == record
    assert record["torch"] == torch.__version__
    assert type(record["torch"]) is str  # what a checkpoint can contain
    assert record["device"] == "cpu"
    assert record["threads"] == torch.get_num_threads()


def test_a_clock_measures_one_call_of_the_work():
    calls = []
    seconds = clocked(lambda: calls.append(time.sleep(0.05)), CPU)
    assert len(calls) == 1
    assert 0.05 <= seconds < 5


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_synchronize_waits_for_the_device_and_has_nothing_to_wait_for_on_the_cpu(monkeypatch, kind):
    waited = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda: waited.append(kind))
    synchronize(CPU)
    assert waited == []
    synchronize(torch.device(kind))
    assert waited == [kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_rate_is_two_operations_per_element_pair_by_the_best_time(monkeypatch, dtype):
    products = []
    monkeypatch.setattr(lab.machine, "MATMUL_SIZE", {"cuda": 8, "other": 16})
    times = iter([3.0, 2.0, 4.0])

    def clock(work, device):
        products.append(work())
        return next(times)

    monkeypatch.setattr(lab.machine, "clocked", clock)
    assert matmul_rate(CPU, dtype) == pytest.approx(2 * 16**3 / 2.0 / 1e9)
    assert [(product.shape, product.dtype) for product in products] == [((16, 16), dtype)] * 3


CALLS = {
    "pick_device": lambda: pick_device("cpu") == CPU,
    "machine": lambda: machine(CPU)["python"] == platform.python_version(),
    "number_format": lambda: number_format(CPU) in (torch.float32, torch.bfloat16),
    "keep_freed_memory": lambda: keep_freed_memory() is None,
    "clocked": lambda: clocked(lambda: None, CPU) < 1,
    "synchronize": lambda: synchronize(CPU) is None,
    "matmul_rate": lambda: matmul_rate(CPU, torch.float32) > 0,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_gives_its_result_and_leaves_global_state_alone(call):
    with unchanged():
        assert call()


def test_the_memory_that_programs_can_get_is_what_the_system_says(monkeypatch, tmp_path):
    said = tmp_path / "meminfo"
    said.write_text("MemTotal:       16000000 kB\nMemFree:          200000 kB\nMemAvailable:    5000000 kB\n")
    monkeypatch.setattr(lab.machine, "open", lambda path: said.open(), raising=False)
    assert available_memory() == 5_120_000_000
    said.unlink()
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_memory() == 4_096_000
    monkeypatch.delattr(os, "sysconf")
    assert available_memory() is None
