"""The convolutional networks of examples/zoo in static int8: near float, int8 between all layers, the same integers everywhere."""

import copy
import sys
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from torch import nn  # noqa: E402
from torch.nn.functional import cosine_similarity  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from zoo import vision  # noqa: E402
from zoo.vision.mobilenet import InvertedResidual  # noqa: E402
from zoo.vision.resnet import BasicBlock  # noqa: E402

import rquant  # noqa: E402

LAYERS = (rquant.Conv2d, rquant.Linear)


def static(model, pictures, method="minmax", **scheme):
    model = copy.deepcopy(model)
    rquant.fold_bn(model, pictures[:1])
    rquant.quantize(model, activations="int8", **scheme)
    rquant.calibrate(model, pictures.split(8), method=method)
    rquant.freeze(model)
    return model


class Zoo:
    """One network, in float and in int8."""

    def __init__(self, name):
        self.name = name
        self.model, pictures = vision.small(name), vision.scenes(32, 32, seed=1)
        self.x = vision.scenes(3, 32, seed=5)
        with torch.no_grad():
            self.want, self.middle = self.model(self.x), self.model(pictures).mean(0)
            self.static = static(self.model, pictures)
            self.got = self.static(self.x)


@pytest.fixture(scope="module", params=list(vision.SMALL))
def zoo(request):
    return Zoo(request.param)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small pictures are no work to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class Ops(TorchDispatchMode):
    """Every operator that runs, with the tensors it makes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]))
        return out

    def ours(self):
        return [func._opname for func, _ in self.calls if func.namespace == "rquant"]

    def floats(self, size):
        """Shapes of the float tensors with more than `size` elements."""
        made = [t for _, tensors in self.calls for t in tensors if t.is_floating_point() and not t.is_meta]
        return [tuple(t.shape) for t in made if t.numel() > size]


def ops_of(model, x):
    x = x.contiguous(memory_format=torch.channels_last)
    with Ops() as ops:
        model(x)
    return ops


def test_logits_stay_near_float(zoo):
    assert cosine_similarity(zoo.got, zoo.want).min() > 0.99
    # what all pictures have in common is no feat
    assert cosine_similarity(zoo.got - zoo.middle, zoo.want - zoo.middle).min() > 0.95


def test_every_layer_is_calibrated_and_every_batchnorm_folded(zoo):
    layers = [m for m in zoo.static.modules() if isinstance(m, LAYERS)]
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in zoo.model.modules())
    assert all("input" in layer.calibrated for layer in layers)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in zoo.static.modules())


def test_no_float_tensor_between_layers(zoo):
    ops = ops_of(zoo.static, zoo.x)
    assert ops.floats(zoo.got.numel()) == []  # nothing but logits and scales
    count = Counter(ops.ours())
    convolutions = sum(isinstance(m, rquant.Conv2d) for m in zoo.static.modules())
    assert count["conv_static"] == convolutions  # none twice
    assert (count["quantize_images_static"], count["linear_static"]) == (1, 1)
    assert count["dequantize_static"] == count["add_static"] == 0


def test_what_runs_beside_the_products(zoo):
    """Sums and activations are part of the products; only pooling and branches that meet need operators of their own."""
    beside = Counter(ops_of(zoo.static, zoo.x).ours())
    for name in ("conv_static", "linear_static", "quantize_images_static", "adaptive_avg_pool_static"):
        del beside[name]
    assert (
        dict(beside)
        == {
            "resnet18": {"max_pool_static": 1},
            "resnext50": {"max_pool_static": 1},
            "googlenet": {"max_pool_static": 6},
            "inception_v3": {"max_pool_static": 2, "avg_pool_static": 3, "requantize_static": 1},
            "mobilenet_v2": {},
            # half of the channels are read by the next unit, whose halves have another scale
            "shufflenet_v2": {"max_pool_static": 1, "requantize_static": 2},
        }[zoo.name]
    )


def test_a_picture_gives_the_same_alone(zoo):
    for i in range(len(zoo.x)):
        assert torch.equal(zoo.static(zoo.x[i : i + 1]), zoo.got[i : i + 1])


def test_memory_layout_and_threads_change_nothing(zoo, set_num_threads):
    assert torch.equal(zoo.static(zoo.x.contiguous(memory_format=torch.channels_last)), zoo.got)
    set_num_threads(1)
    one = zoo.static(zoo.x)
    set_num_threads(2)
    assert torch.equal(zoo.static(zoo.x), one)
    assert torch.equal(one, zoo.got)


def test_copies_and_files_give_the_same(zoo, tmp_path):
    assert torch.equal(copy.deepcopy(zoo.static)(zoo.x), zoo.got)
    rquant.save(zoo.static, tmp_path / "net.safetensors")
    loaded = rquant.load(tmp_path / "net.safetensors", copy.deepcopy(zoo.model).to("meta"))
    assert torch.equal(loaded(zoo.x), zoo.got)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # what it fixes is fixed in a network
def test_compiled_exported_and_traced_give_the_same(zoo):
    # shufflenet_v2 joins tuples; dynamo looks for what passes for a tensor in lists alone
    if zoo.name != "shufflenet_v2":
        compiled = torch.compile(zoo.static, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(zoo.x), zoo.got)
    assert torch.equal(torch.export.export(zoo.static, (zoo.x,)).module()(zoo.x), zoo.got)
    traced = torch.jit.trace(zoo.static, zoo.x, check_trace=False)
    assert torch.equal(traced(zoo.x[:1]), zoo.got[:1])


@pytest.mark.parametrize("method", ["moving_average", "percentile", "mse", "entropy"])
def test_each_way_to_choose_ranges_works(method):
    model, pictures = vision.small("resnet18"), vision.scenes(32, 32, seed=1)
    x = vision.scenes(3, 32, seed=5)
    assert cosine_similarity(static(model, pictures, method)(x), model(x)).min() > 0.99


def test_weights_of_4_bits():
    model, pictures = vision.small("resnet18"), vision.scenes(32, 32, seed=1)
    x = vision.scenes(3, 32, seed=5)
    packed = static(model, pictures, weights="int4", group_size=32)
    assert cosine_similarity(packed(x), model(x)).min() > 0.95
    assert ops_of(packed, x).floats(30) == []


@pytest.mark.parametrize(
    "block",
    [lambda: BasicBlock(16, 16, 1), lambda: InvertedResidual(16, 16, 1, 2)],
    ids=["resnet", "mobilenet"],
)
def test_a_residual_block_is_its_convolutions(block):
    """Conv, relu, conv, sum: one operator a convolution, int8 in, int8 out."""
    torch.manual_seed(0)
    inner = block()
    before, after = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 10, 1)
    model, x = nn.Sequential(before, inner, after).eval(), vision.scenes(4, 8)
    packed = static(model, x)
    count = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    ops = ops_of(packed, x)
    assert ops.ours() == ["quantize_images_static"] + ["conv_static"] * count
    made = [tensors[0].dtype for func, tensors in ops.calls if func._opname == "conv_static"]
    assert made == [torch.int8] * (count - 1) + [torch.float32]
    want = model(x)
    assert cosine_similarity(packed(x).flatten(1), want.flatten(1)).min() > 0.999
