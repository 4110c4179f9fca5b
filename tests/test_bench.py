"""The benchmark: what is measured, how often and in which order; never how fast."""

import contextlib
import functools
import io
import json
import random
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lab.machine
from lab import bench
from lab.commands import main
from lab.data import STAND_IN, normalize, stand_in
from lab.machine import number_format
from lab.recipes import COMPARED, RECIPES
from lab.report import bench_summary, bench_text
from lab.tuning import LAYOUTS, Format
from model import CONVS, NORMS, Net, describe

CPU = torch.device("cpu")
PLAN = bench.Plan(batch_size=32, batches=3)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run of the command: its exit status, the lines it printed, and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    printed = io.StringIO()
    plt.switch_backend("Agg")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("lab.data.stand_in", functools.cache(stand_in))
        patch.chdir(folder)
        status = main(["bench", "--quick", "--dataset", "stand-in", "--device", "cpu"])
    plt.close("all")
    return status, printed.getvalue().splitlines(), folder


@pytest.fixture
def measured(quick) -> dict:
    """What the quick run wrote."""
    (path,) = (quick[2] / "runs" / "bench").glob("*.json")
    return json.loads(path.read_text())


def test_the_command_prints_a_table_and_json_and_leaves_a_file_and_a_picture(quick, measured):
    status, lines, folder = quick
    assert status == 0
    assert json.loads(lines[-1]) == measured["summary"]
    # Neither in results/ nor in images/, beside what was measured in earnest.
    assert sorted(path.suffix for path in folder.rglob("*.*")) == [".json", ".png"]
    assert (folder / "runs" / "bench" / "bench-quick.png").is_file()
    assert "\n".join(lines[:-1]) == bench_text(measured)
    for norm in NORMS:
        assert sum(bool(re.match(rf"{norm} +[\d.,]+ ", line)) for line in lines) == len(measured["pairs"])


def test_report_reads_the_default_folders_that_a_benchmark_and_a_training_left(
    quick, capsys, tmp_path, monkeypatch
):
    shutil.copytree(quick[2], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lab.data.stand_in", functools.cache(stand_in))
    assert main(["train", "--dataset", "stand-in", "--limit", "300", "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main(["report", "runs"]) == 0
    assert "| default-batch-mixed-limit-300 | STAND-IN (not CIFAR-10) |" in capsys.readouterr().out
    (path,) = (tmp_path / "runs" / "bench").glob("*.json")
    path.rename(tmp_path / "runs" / "cpu.json")
    assert main(["report", "runs"]) == 0


def test_the_result_names_data_machine_and_versions(measured):
    assert measured["dataset"] == measured["summary"]["dataset"] == STAND_IN
    assert measured["machine"]["torch"] == torch.__version__
    assert measured["chosen"]["format"].split()[0] == measured["machine"]["dtype"]


def test_every_pair_size_and_step_has_a_positive_time_per_round(measured):
    def leaves(tree):
        return [tree] if isinstance(tree, list) else [leaf for each in tree.values() for leaf in leaves(each)]

    plan = measured["plan"]
    formats = {"float32", str(number_format(CPU)).removeprefix("torch."), measured["machine"]["dtype"]}
    assert measured["matmul"].keys() == measured["pairs"].keys() == formats
    steps = {f"{dtype} {layout}" for dtype in formats for layout in LAYOUTS}
    steps |= {bench.BFLOAT16_MATH} if hasattr(torch.backends.mkldnn, "conv") else set()
    assert measured["step"]["seconds"].keys() == steps
    for pairs in measured["pairs"].values():
        assert {norm: list(row) for norm, row in pairs.items()} == {key: list(COMPARED) for key in NORMS}
    for kernels in measured["kernels"].values():
        assert kernels.keys() == measured["like"].keys()
    assert all(list(row) == [str(n) for n in plan["sizes"]] for row in measured["matmul"].values())
    axes = {"batch size": plan["batch_sizes"], "width": plan["widths"], "image size": plan["image_sizes"]}
    assert {axis: list(row) for axis, row in measured["growth"].items()} == {
        axis: [str(value) for value in values] for axis, values in axes.items()
    }
    assert list(measured["training"]) == ["conventional", "ours", "ours, sizes as scheduled"]
    keys = ("pairs", "matmul", "growth", "training", "kernels")
    times = [leaf for key in keys for leaf in leaves(measured[key])] + leaves(measured["step"]["seconds"])
    assert {len(each) for each in times} == {plan["rounds"]}
    assert {len(each) for each in measured["company"].values()} == {plan["company_rounds"]}
    assert len(measured["company"]) == 6
    at_once = [len(each) for each in measured["two runs"].values()]
    assert at_once == ([plan["company_rounds"]] * 2 if torch.get_num_threads() > 1 else [])
    assert [len(each) for each in measured["search"].values()] == [1, plan["rounds"]]
    assert sum(measured["parts"].values()) == pytest.approx(1)
    for part in ("convolution", "normalization", "optimizer", "augmentation", "resizing"):
        assert 0 < measured["parts"][part] < 1
    assert len(measured["start"]["seconds"]) == len(measured["start"]["bytes"]) == plan["starts"]
    assert min(map(min, [*times, *measured["company"].values(), measured["start"]["seconds"]])) > 0
    assert measured["summary"]["peak_memory_bytes"] is None or measured["summary"]["peak_memory_bytes"] > 1e8


def test_the_summary_follows_from_the_raw_times(measured):
    assert bench_summary(measured) == measured["summary"]


def test_measuring_leaves_the_random_states_as_they_were(measured, small, monkeypatch):
    def states() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def alternate(*_) -> dict:
        random.random(), np.random.rand(), torch.rand(1)
        names = ("matmul", "step", "pairs", "growth", "training", "kernels")
        return {name: dict(measured[name]) for name in names}

    monkeypatch.setattr(bench, "company", lambda *_: random.random() and measured["company"])
    monkeypatch.setattr(bench, "two_at_once", lambda *_: random.random() and measured["two runs"])
    monkeypatch.setattr(bench, "started", lambda *_: (1.0, 100))
    monkeypatch.setattr(bench, "load_dataset", lambda *_: small)
    monkeypatch.setattr(bench, "alternate", alternate)
    before = states()
    bench.bench(bench.QUICK, device="cpu")
    assert states() == before


def test_tasks_take_turns():
    calls = []

    def task(name):
        return lambda: calls.append(name) or len(calls)

    times = bench.alternate({("a", "x"): task("ax"), ("a", "y"): task("ay"), ("b",): task("b")}, rounds=2)
    assert calls == ["ax", "ay", "b"] * 2
    assert times == {"a": {"x": [1, 4], "y": [2, 5]}, "b": [3, 6]}


def test_a_round_after_the_first_does_not_start_if_it_would_end_too_late(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def task():
        now[0] += 10.0
        return 10.0

    assert bench.alternate({("a",): task, ("b",): task}, rounds=5, limit=0.0) == {"a": [10.0], "b": [10.0]}
    assert bench.alternate({("a",): task, ("b",): task}, rounds=5, limit=65.0)["b"] == [10.0] * 3


def test_a_timing_lasts_as_long_as_asked_after_an_untimed_warm_up(monkeypatch):
    now, counts = [0.0], []
    monkeypatch.setattr(lab.machine, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def work(count):
        counts.append(count)
        now[0] += 0.1 * count + (5.0 if len(counts) == 1 else 0.0)  # the first has cold caches

    timing = bench.repeated(work, CPU, seconds=1.0)
    assert [timing(), timing()] == pytest.approx([0.1, 0.1])
    assert counts == [1, 1, 1, 10]


def test_a_product_is_repeated_as_often_as_asked():
    work = bench.product(8, torch.float32, CPU)
    with FlopCounterMode(display=False) as counter:
        work(3)
    assert counter.get_total_flops() == 3 * 2 * 8**3


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.Conv2d(8, 6, 1, stride=2),
    )


# Multiply-accumulates of one 8x8 image: dense 3x3, depthwise 3x3, pointwise on 4x4.
MACS = (3 * 8 * 9 * 64, 8 * 9 * 64, 8 * 6 * 16)


def test_flops_of_a_step_are_three_forward_passes_without_the_gradient_of_the_images():
    images = torch.randn(5, 3, 8, 8)
    assert bench.step_flops(small_net(), images) == 2 * 5 * (3 * sum(MACS) - MACS[0])
    frozen = small_net()
    frozen[0].weight.requires_grad_(False)
    frozen[0].bias.requires_grad_(False)
    # No gradient for the first layer's weight, nor for the second layer's input.
    assert bench.step_flops(frozen, images) == 2 * 5 * (3 * sum(MACS) - 2 * MACS[0] - MACS[1])


@pytest.mark.parametrize("conv", CONVS)
def test_flops_of_the_network_follow_from_its_multiply_accumulates(conv):
    net = Net(conv=conv)
    rows = describe(net)
    first = (0, 1, 3) if conv == "gated_multi_scale" else (0,)  # read the images, which need no gradient
    of_images = sum(rows[number].macs for number in first)
    assert bench.step_flops(net, torch.randn(2, 3, 32, 32)) == 2 * 2 * (3 * rows.total_macs - of_images)
    assert all(parameter.grad is None for parameter in net.parameters())


class Watched(Net):
    """Keeps the images that it is trained on, and the number format of its logits."""

    def __init__(self):
        super().__init__(width=0.25)
        self.seen, self.formats = [], set()

    def forward(self, images):
        self.seen.append(images)
        logits = super().forward(images)
        self.formats.add(logits.dtype)
        return logits


def test_conventional_and_ours_are_timed_over_the_same_number_of_images(small, monkeypatch):
    net = Watched()
    starts = []

    def clocked(work, device):
        starts.append(len(net.seen))
        work()
        return 1.0

    monkeypatch.setattr(bench, "clocked", clocked)
    timing = bench.conventional(net, small, PLAN, CPU)
    assert [timing(), timing()] == [1.0, 1.0]
    assert starts == [bench.QUEUE, 2 * bench.QUEUE + PLAN.batches]
    assert {tuple(images.shape) for images in net.seen} == {(PLAN.batch_size, 3, 32, 32)}
    assert len(net.seen) == 2 * (bench.QUEUE + PLAN.batches)
    assert all(images.dtype == torch.float32 and images.is_contiguous() for images in net.seen)
    assert net.formats == {torch.float32}
    assert next(net.parameters()).is_contiguous()

    net = Watched()
    recipe = RECIPES["default"]
    assert bench.ours(net, small, recipe, PLAN, CPU, Format(torch.float32, torch.contiguous_format))() > 0
    assert [len(images) for images in net.seen] == [PLAN.batch_size] * PLAN.batches
    assert all(images.is_contiguous() for images in net.seen)
    assert net.formats == {torch.float32}


def test_conventional_pictures_are_the_training_images(small):
    pictures = bench.Pictures(small)
    *moved, to_tensor, normalized = pictures.transform.transforms
    assert [type(step).__name__ for step in moved] == ["RandomCrop", "RandomHorizontalFlip"]
    pictures.transform = lambda image: normalized(to_tensor(image))
    images, labels = zip(*(pictures[index] for index in range(5)), strict=True)
    torch.testing.assert_close(torch.stack(images), normalize(small.train_images[:5]))
    assert list(labels) == small.train_labels[:5].tolist()
    assert len(pictures) == 1_000


def test_a_step_is_repeated_as_often_as_asked_and_trains():
    net = Watched()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    work = bench.step(net, RECIPES["default"], 4, CPU, 16, form=Format(torch.float32))
    work(3)
    assert [tuple(images.shape) for images in net.seen] == [(4, 3, 16, 16)] * 3
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_memory_is_positive_and_unknown_if_the_system_does_not_tell(monkeypatch):
    assert bench.peak_memory() > 1e6
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert bench.peak_memory() is None


def test_the_file_holds_the_result_and_is_named_after_the_machine(measured, tmp_path):
    path = bench.write(measured, tmp_path / "new")
    assert json.loads(path.read_text()) == measured
    other = measured | {"machine": measured["machine"] | {"processor": "Abacus 2"}}
    assert "abacus-2" in bench.write(other, tmp_path / "new").name
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("name", bench.KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_is_timed_forwards_and_backwards_as_torch_has_it(name, dtype, monkeypatch):
    layer = bench.KERNELS[name][0]()
    calls, found = [], []
    layer.register_forward_hook(lambda _, inputs, out: found.append((inputs[0].shape[2:], out.dtype)))
    monkeypatch.setattr(torch.autograd, "grad", lambda out, inputs, _: calls.append(len(inputs)))
    bench.kernel(layer, 2, CPU, Format(dtype))(3)
    assert found == [((bench.SIDE, bench.SIDE), dtype)] * 3
    assert calls == [1 + len(list(layer.parameters()))] * 3
    assert "forward" not in vars(layer)


def test_the_pace_counts_only_the_second_half(monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def train(net, batches, optimizer, *, before_step, dtype, layout):
        for index, (images, _) in enumerate(batches):
            before_step(index)
            seen.append((len(images), dtype))
            now[0] += 1.0 if now[0] < 4 else 0.25

    monkeypatch.setattr(bench, "train", train)
    assert bench.paced(Net(width=0.25), 10.0, Format(torch.float32), PLAN, 1) == pytest.approx(0.25)
    assert set(seen) == {(PLAN.batch_size, torch.float32)}


@pytest.mark.parametrize("name", bench.COMPANIONS)
def test_a_companion_runs_within_its_context_and_ends_with_it(name, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(bench.subprocess, "Popen", Popen)
    with bench.companion(name, Format(torch.float32)):
        assert started[0].poll() is None
    assert started[0].wait(10) != 0


def test_a_companion_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setitem(bench.COMPANIONS, "busy process", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="the busy process did not start"):
        bench.companion("busy process", Format(torch.float32)).__enter__()


def test_two_runs_are_made_one_after_another_and_at_once_after_short_ones(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run_all(runs, out, *, executor, **options):
        assert not options["resume"]  # else the second round would have nothing to do
        calls.append((executor is not None, [run.seed for run in runs], {run.limit for run in runs}))
        now[0] += (3.0 if executor else 4.0) + (100.0 if len(calls) <= 2 else 0.0)

    monkeypatch.setattr(bench, "run_all", run_all)
    monkeypatch.setattr(bench, "process_pool", lambda processes: contextlib.nullcontext(processes))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = bench.two_at_once(bench.FULL, "cifar10", None, Format(torch.float32))
    assert found == {"one after another": [4.0] * 3, "two at once": [3.0] * 3}
    assert [call[0] for call in calls] == [False, True] * 4
    assert {tuple(call[1]) for call in calls} == {(0, 1)}
    assert [call[2] for call in calls] == [{256}] * 2 + [{None}] * 6  # the short ones begin the processes
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert bench.two_at_once(bench.FULL, "cifar10", None, Format(torch.float32)) == {}


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="this PyTorch cannot be asked for it")
def test_the_precision_of_products_is_as_before_after_steps_with_bfloat16_products():
    conv, matmul = torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul
    before, seen = (conv.fp32_precision, matmul.fp32_precision), []
    bench.with_bfloat16_math(lambda count: seen.append((count, conv.fp32_precision)), 3)
    assert seen == [(3, "bf16")]
    with pytest.raises(ZeroDivisionError):
        bench.with_bfloat16_math(lambda count: 1 / 0, 1)
    assert (conv.fp32_precision, matmul.fp32_precision) == before


def test_an_operation_belongs_to_the_part_that_it_is_called_in():
    def event(name, parent=None):
        return SimpleNamespace(name=name, cpu_parent=parent)

    optimizer = event("Optimizer.step#Muon.step")
    assert bench._part(event("aten::copy_", event("aten::mm", optimizer))) == "optimizer"
    assert bench._part(event("aten::copy_", event(bench.LOADER))) == bench.LOADER
    assert bench._part(event("aten::copy_", event("aten::to"))) == "copies"
    assert bench._part(event("aten::mkldnn_convolution")) == "convolution"
    assert bench._part(event("aten::relu")) == "activation"
    assert bench._part(event("aten::mean")) == bench.REST
