"""The table of digits in small: one seed, short training."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for package in ("mlxtend", "tqdm"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benches")]

import bench_mnist  # noqa: E402
from zoo import digits  # noqa: E402

import rquant  # noqa: E402


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = digits.Digits()
    digits.train(net, 4, 1e-2, 0)
    return net


def test_pictures_are_the_same_ones_always():
    x, labels = digits.pictures()
    assert x.shape == (5000, 1, 28, 28)
    assert (x.min().item(), x.max().item()) == (-0.5, 0.5)
    assert labels[:8].tolist() == [4, 2, 0, 9, 6, 6, 2, 1]
    assert labels.bincount().tolist() == [500] * 10
    assert len(labels) - digits.TRAINED >= 1000


def test_calibrated_and_trained(net, monkeypatch):
    before = digits.accuracy(net)
    assert before > 90
    assert bench_mnist.measure(net, "int8 static, minmax", 0) > before - 1
    rounded = bench_mnist.measure(net, "int2 static", 0)
    monkeypatch.setattr(bench_mnist, "QAT_EPOCHS", 2)
    trained = bench_mnist.trained(copy.deepcopy(net), "int2", 0)
    found = digits.accuracy(trained)
    assert found > rounded + 3
    with torch.no_grad():
        want = trained(digits.pictures()[0][:100])
        rquant.freeze(trained)
        assert torch.equal(trained(digits.pictures()[0][:100]), want)
    assert digits.accuracy(trained) == found


def test_the_recorded_table():
    seeds = json.loads((ROOT / "benches/results/mnist.json").read_text(encoding="utf-8"))["seeds"]
    assert [sorted(done) for done in seeds.values()] == [sorted(bench_mnist.ARMS)] * 3
    lines = {line.split("|")[1].strip(): line.split("|")[3] for line in bench_mnist.table(seeds).splitlines()}
    assert float(lines["int4 QAT"]) > -0.5
