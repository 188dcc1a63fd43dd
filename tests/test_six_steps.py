"""The six steps from end to end, on a small net that is trained for a moment."""

import functools
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mlxtend", reason="comes with make six-steps")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import six_steps  # noqa: E402

pytestmark = pytest.mark.usefixtures("set_num_threads")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(six_steps, "Net", functools.partial(six_steps.Net, 8))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(capsys, *arguments):
    right = six_steps.main(["--epochs", "1", "--batch", "8", *arguments])
    told = capsys.readouterr().out
    for number in range(1, 7):
        assert f"\n{number}. " in told
    assert "observers in it: 0" in told
    assert told.count("Decision: ") == 1
    return right, told


def test_a_loss_within_bounds_needs_no_training(capsys):
    right, told = run(capsys, "--loss", "5")
    assert right.keys() == {"float32", "dynamic", "static"}
    assert abs(right["static"] - right["float32"]) < 5
    assert "Decision: float32" not in told


def test_a_loss_beyond_them_is_trained_for(capsys):
    right, told = run(capsys, "--weights", "int2", "--loss", "1")
    assert right["QAT"] > right["static"]
    assert "train for the rounding" in told
