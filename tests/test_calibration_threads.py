"""Calibration beside other work: threads that serve, inference mode, loaders with labels."""

import threading

import pytest
import torch
from torch import nn

import rquant


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    rquant.quantize(model.eval(), activations="int8")
    return model


def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_what_other_threads_run_is_not_recorded():
    x, served, model = images(), net(), net()
    rquant.calibrate(served, [x])
    rquant.freeze(served)
    with torch.no_grad():
        want = served(x)
    scale = served[2].input_scale.item()
    outputs = []

    def serve():
        with torch.no_grad():
            outputs.append(served(x * 2 - x))

    with rquant.Calibration("minmax") as calibration:
        model(x)
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
        model(x)
    assert torch.equal(outputs[0], want)
    assert sorted(calibration.layers) == ["0", "2", "4"]
    assert served[2].input_scale.item() == scale
    assert model[0].flow
    assert not model[4].flow


def test_a_model_calibrated_in_inference_mode_trains_and_loads():
    x, model = images(), net()
    with torch.inference_mode():
        rquant.calibrate(model, [x])
    model.load_state_dict(model.state_dict())
    rquant.qat.prepare(model, activations="fixed")
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_labels_in_a_batch_are_named():
    with pytest.raises(
        ValueError, match=r"batches: expected arguments of Sequential.forward, got a batch of 2 .*labels"
    ):
        rquant.calibrate(net(), [(images(), torch.zeros(4))])
    with pytest.raises(ValueError, match=r"batches: .* got a batch of image, label"):
        rquant.calibrate(net(), [{"image": images(), "label": torch.zeros(4)}])
