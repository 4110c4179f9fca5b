"""Other people's tools on our networks: each gets a network, and what it makes of it equals the network.

A tool that is not installed is skipped.
"""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

from model import CONVS, NORMS, Net, Row, conv_block, describe

HERE = Path(__file__).resolve().parent.parent
PAIRS = [(norm, conv) for norm in NORMS for conv in CONVS]
# Each kind of row once, strided, residual, dilated and separable, since exporting takes seconds.
STAGES = ((Row(16, stride=2), Row(16)), (Row(16, "dilated"),), (Row(24, "depthwise_separable", 2),))

torchs_tracer_is_old = pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trained(norm="batch", conv="mixed", **options):
    """A network in evaluation mode whose norms and running statistics are no longer those of a new one."""
    net = Net(norm, conv, **options)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    net(1 + 2 * torch.randn(8, net.in_channels, 32, 32))
    return net.eval()


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---- Graphs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_fx_traces_a_network_to_the_same_values(norm, conv):
    net = trained(norm, conv, stages=STAGES)
    graph = torch.fx.symbolic_trace(net)
    for images in (torch.randn(2, 3, 32, 32), torch.randn(3, 3, 24, 40)):
        same(graph(images), net(images))


def test_a_feature_extractor_returns_the_maps_between():
    net, images = trained(), torch.randn(2, 3, 32, 32)
    found = create_feature_extractor(net, {"c2": "stage", "c4.2.act": "last", "output": "output"})(images)
    stage = net.c2(net.c1(images))
    same(found["stage"], stage)
    block = net.c4[2]
    before = net.c4[1](net.c4[0](net.c3(stage)))
    same(found["last"], block.act(block.norm(block.conv(before))))
    same(found["output"], net.features(images))


@torchs_tracer_is_old
def test_jit_traces_a_network_for_any_size_without_a_warning():
    net = trained()
    traced = torch.jit.trace(net, torch.randn(2, 3, 32, 32))  # a warning would be an error
    for images in (torch.randn(2, 3, 32, 32), torch.randn(5, 3, 48, 17)):
        same(traced(images), net(images))


@torchs_tracer_is_old
def test_tensorboard_draws_every_convolution(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = trained()
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(net, torch.randn(2, 3, 32, 32))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    drawn = [node.name for node in events.Graph().node if node.op == "aten::_convolution"]
    assert len(drawn) == len(describe(net))


def exports(module, images, least):
    """Export with a dynamic batch, height and width, and compare the values on other shapes."""
    sizes = {
        0: torch.export.Dim("N"),
        2: torch.export.Dim("H", min=least),
        3: torch.export.Dim("W", min=least),
    }
    exported = torch.export.export(module, (images,), dynamic_shapes=(sizes,)).module()
    for shape in ((2, 32, 32), (5, 16, 47), (7, 33, 18)):
        others = torch.randn(shape[0], images.shape[1], *shape[1:])
        same(exported(others), module(others))


@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_a_network_is_exported_for_any_batch_and_size(norm, conv):
    exports(trained(norm, conv, stages=STAGES), torch.randn(3, 3, 32, 24), 16)


def test_the_default_network_is_exported_for_any_batch_and_size():
    exports(trained(), torch.randn(3, 3, 32, 24), 16)


@pytest.mark.parametrize("norm", NORMS)
def test_a_block_with_a_dilated_depthwise_convolution_is_exported(norm):
    block = conv_block(8, 8, dilation=2, conv="depthwise_separable", norm=norm)
    exports(block.eval(), torch.randn(3, 8, 32, 24), 3)


def test_a_network_compiles_without_a_graph_break():
    net = trained(stages=STAGES)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    images = torch.randn(2, 3, 32, 32)
    same(compiled(images), net(images))


# ---- Gradients of each image -----------------------------------------------------------------------


def gradients_of_each_image(net, images, labels):
    tensors = dict(net.named_buffers())

    def loss(parameters, image, label):
        return F.cross_entropy(functional_call(net, (parameters, tensors), (image[None],)), label[None])

    return torch.vmap(grad(loss), (None, 0, 0))(dict(net.named_parameters()), images, labels)


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize(("norm", "training"), [(norm, norm != "batch") for norm in NORMS])
def test_vmap_of_grad_gives_the_gradients_of_each_image(norm, training, conv):
    net = trained(norm, conv, stages=STAGES).train(training)
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([1, 5, 9])
    found = gradients_of_each_image(net, images, labels)
    for index in range(3):
        net.zero_grad()
        F.cross_entropy(net(images[index : index + 1]), labels[index : index + 1]).backward()
        for name, parameter in net.named_parameters():
            same(found[name][index], parameter.grad)


def test_batch_norm_has_no_gradients_of_each_image_in_training():
    # Its statistics are of the whole batch, and it writes them into its buffers.
    with pytest.raises(RuntimeError, match="in-place operation"):
        gradients_of_each_image(Net(stages=STAGES), torch.randn(3, 3, 32, 32), torch.tensor([1, 5, 9]))


# ---- Counters of multiply-accumulates --------------------------------------------------------------


@pytest.mark.parametrize("conv", CONVS)
def test_thop_counts_every_convolution(conv):
    thop = pytest.importorskip("thop")
    net = trained("none", conv)
    # thop adds its counters to the network as buffers.
    macs, parameters = thop.profile(copy.deepcopy(net), (torch.zeros(1, 3, 32, 32),), verbose=False)
    table = describe(net)
    assert (macs, parameters) == (table.total_macs, table.total_parameters)


@pytest.mark.parametrize("conv", CONVS)
def test_ptflops_counts_every_convolution(conv):
    ptflops = pytest.importorskip("ptflops")
    net, biased = trained("none", conv), []
    table = describe(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.register_forward_hook(lambda _module, _inputs, output: biased.append(output.numel()))
    macs, parameters = ptflops.get_model_complexity_info(
        net, (3, 32, 32), as_strings=False, print_per_layer_stat=False, backend="aten"
    )
    # It counts the addition of a bias as well.
    assert (macs, parameters) == (table.total_macs + sum(biased), table.total_parameters)


@torchs_tracer_is_old
@pytest.mark.parametrize("conv", CONVS)
def test_fvcore_counts_every_convolution(conv):
    pytest.importorskip("fvcore")
    from fvcore.nn import FlopCountAnalysis

    net = trained("batch", conv)
    counted = FlopCountAnalysis(net, torch.zeros(1, 3, 32, 32))
    counted.unsupported_ops_warnings(False)
    assert counted.by_operator()["conv"] == describe(net).total_macs


@pytest.mark.parametrize("conv", CONVS)
def test_torchs_counter_counts_every_convolution_and_a_multiply_accumulate_as_two(conv):
    net = trained("batch", conv)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * describe(net).total_macs


# ---- Copies and files ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_safetensors_keeps_a_loaded_network(tmp_path, layout):
    safetensors = pytest.importorskip("safetensors.torch")
    net = trained().to(memory_format=layout)
    loaded = Net.load(net.save(tmp_path / "net.pt"))
    safetensors.save_file(loaded.state_dict(), tmp_path / "net.safetensors")
    other = Net()
    other.load_state_dict(safetensors.load_file(tmp_path / "net.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(other.eval()(images), loaded(images))


def test_the_parameters_of_a_loaded_network_make_one_vector(tmp_path):
    net = trained().to(memory_format=torch.channels_last)
    loaded = Net.load(net.save(tmp_path / "net.pt"))
    vector = nn.utils.parameters_to_vector(loaded.parameters())
    assert torch.equal(vector, torch.cat([parameter.flatten() for parameter in net.parameters()]))


def from_the_hub(*arguments, **options):
    return torch.hub.load(str(HERE), "net", *arguments, source="local", **options)


ELSEWHERE = """
import pickle, sys, torch
assert not [name for name in sys.modules if name.startswith("cifar10")]
state = torch.get_rng_state()
trained, new = torch.load("nets.pt", weights_only=False)
with open("objects.pickle", "rb") as file:
    part, predictions = pickle.load(file)
assert torch.equal(torch.get_rng_state(), state), "loading drew random numbers"
torch.save([net(torch.ones(1, 3, 32, 32)) for net in (trained, new, part)], "out.pt")
assert predictions == trained.predict(torch.zeros(3, 32, 32, dtype=torch.uint8))
assert trained.preprocessing.size == 32 and not trained.training and new.training
"""


def test_a_network_from_the_hub_is_loaded_where_the_checkout_was_never_imported(tmp_path):
    trained, new = from_the_hub(pretrained="minute"), from_the_hub("group", "mixed", width=0.5)
    part = nn.Sequential(new.c1, new.c2)
    torch.save([trained, new], tmp_path / "nets.pt")
    predictions = trained.predict(torch.zeros(3, 32, 32, dtype=torch.uint8))
    (tmp_path / "objects.pickle").write_bytes(pickle.dumps((part, predictions)))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = torch.ones(1, 3, 32, 32)
    expected = [trained(images), new(images), part(images)]
    assert all(map(torch.equal, torch.load(tmp_path / "out.pt"), expected))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_network_from_the_hub_is_pickled_within_a_process(protocol):
    net = from_the_hub(pretrained="minute")
    again = pickle.loads(pickle.dumps(net, protocol))
    assert type(again) is type(net)
    assert (again.preprocessing, again.classes, again.config) == (net.preprocessing, net.classes, net.config)
    assert torch.equal(again(torch.ones(1, 3, 32, 32)), net(torch.ones(1, 3, 32, 32)))


def test_copying_a_network_from_the_hub_neither_imports_nor_draws(monkeypatch):
    net = from_the_hub(pretrained="minute")
    monkeypatch.setattr(torch.hub, "load", None)
    state = torch.get_rng_state()
    again, shallow = copy.deepcopy(net), copy.copy(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(again) is type(shallow) is type(net)
    assert again.preprocessing == net.preprocessing
    assert torch.equal(again(torch.ones(1, 3, 32, 32)), net(torch.ones(1, 3, 32, 32)))
    assert shallow.output.weight is net.output.weight
    assert again.output.weight is not net.output.weight


def test_a_subclass_of_a_network_from_the_hub_is_copied_as_itself():
    class WithHead(type(from_the_hub())):
        """A subclass that is defined elsewhere than in model.py."""

    net = WithHead(width=0.25)
    again = copy.deepcopy(net)
    assert type(again) is WithHead
    assert all(map(torch.equal, again.parameters(), net.parameters()))
