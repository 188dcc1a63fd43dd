"""What a calibration has seen: saved, merged, made into other ranges without the data, shown."""

import functools

import pytest
import torch
from observed import METHODS, images, net

import rquant
from rquant import observers
from rquant.calibration.tensor import FROM_COUNTS


def scales(model):
    return {
        f"{name}.{place}": (layer.qparams(place)[0].item(), layer.qparams(place)[1].item())
        for name, layer in model.named_modules()
        for place in ("input", "output")
        if hasattr(layer, "qparams") and layer.qparams(place) is not None
    }


def passages(model):
    return {n: (m.flow, m.keep) for n, m in model.named_modules() if hasattr(m, "keep")}


def calibrated(method="moving_average", data=None, **arguments):
    model = net()
    with rquant.Calibration(method, **arguments) as calibration:
        for x in images() if data is None else data:
            model(x)
    return model, calibration


@pytest.mark.parametrize("method", FROM_COUNTS)
def test_another_method_without_the_data(method, tmp_path):
    want, _ = calibrated(method)
    model, calibration = calibrated("cross_entropy")
    assert scales(model) != scales(want)
    calibration.apply(model, method)
    assert scales(model) == scales(want)
    calibration.save(tmp_path / "seen.safetensors")
    fresh = net()
    rquant.freeze(fresh)
    statistics = rquant.Statistics.load(tmp_path / "seen.safetensors")
    statistics.apply(fresh, method)
    assert scales(fresh) == scales(want)
    assert passages(fresh) == passages(want)
    rquant.freeze(want)
    assert torch.equal(fresh(images(1)[0]), want(images(1)[0]))


@pytest.mark.parametrize("method", METHODS)
def test_a_file_remembers_how_it_was_made(method, tmp_path):
    want, calibration = calibrated(method, symmetric=True, percentile=97.0, overrides={"head": "mse"})
    calibration.save(tmp_path / "seen.safetensors")
    fresh = net()
    rquant.Statistics.load(tmp_path / "seen.safetensors").apply(fresh)
    assert scales(fresh) == scales(want)
    assert fresh.head.input_zero_point == 0


def test_arguments_of_apply():
    model, calibration = calibrated("minmax")
    before = scales(model)
    calibration.apply(model, "percentile", percentile=80.0)
    cut = scales(model)
    assert all(cut[name][0] < before[name][0] for name in cut)
    calibration.apply(model, "minmax", overrides={"head": "mse"}, symmetric=True)
    assert all(zero == 0 for _, zero in scales(model).values())
    with pytest.raises(ValueError, match=r"first\.input: method: expected one of .*, got 'cross_entropy'"):
        calibration.apply(model, "cross_entropy")
    with pytest.raises(ValueError, match="overrides: 'haed' matches nothing"):
        calibration.apply(model, overrides={"haed": "mse"})
    with pytest.raises(ValueError, match="model: expected a quantized layer 'first', got none"):
        calibration.apply(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model: expected a quantized layer 'first', got Conv2d"):
        calibration.apply(type(net())())


def test_files_that_are_none_or_damaged(tmp_path):
    _, calibration = calibrated()
    path = tmp_path / "seen.safetensors"
    calibration.save(path)
    whole = path.read_bytes()
    for spoilt in (whole[:-9], whole[:-9] + b"\xff" * 9, b"nothing"):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"seen\.safetensors"):
            rquant.Statistics.load(path)
    model = net()
    rquant.freeze(model)
    rquant.save(model, path)
    with pytest.raises(ValueError, match=r"seen\.safetensors: expected statistics of format 1"):
        rquant.Statistics.load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_own_observers_are_left_out_of_files(tmp_path):
    _, calibration = calibrated(functools.partial(observers.Percentile, 90.0))
    with pytest.warns(UserWarning, match="observers from a factory are left out, of 5 tensors"):
        calibration.save(tmp_path / "seen.safetensors")
    fresh = net()
    rquant.Statistics.load(tmp_path / "seen.safetensors").apply(fresh)
    assert scales(fresh) == scales(calibrated("moving_average")[0])


@pytest.mark.parametrize("method", METHODS)
def test_merged_is_one_pass(method):
    data = images(4)
    make = functools.partial(observers.CrossEntropy, 10_000) if method == "cross_entropy" else method
    want, _ = calibrated(make, data)
    model, first = calibrated(make, data[:1])
    _, rest = calibrated(make, data[1:])
    first.merge(rest)
    for name, (scale, zero) in scales(want).items():
        assert scales(model)[name] == (pytest.approx(scale, rel=1e-6), zero), name
    with pytest.raises(ValueError, match=r"other: expected momentum 0\.9, got 0\.5"):
        first.merge(calibrated(momentum=0.5)[1])


def test_the_report_says_what_each_method_would_do():
    model, calibration = calibrated("mse")
    report = calibration.report()
    text = str(report)
    assert report.rows[0].name == "first.input"
    assert "not seen, dynamic as before: never" in text
    assert text.count("*") == len(report.rows) == 5
    for row in report.rows:
        assert set(row.ranges) == set(FROM_COUNTS)
        assert row.decibels["mse"] >= max(row.decibels.values()) - 0.05
        assert 20 < row.decibels["mse"] < 60
    assert report.to_dict()["rows"][0]["chosen"] == "mse"
    x = torch.cat(images())
    rounded = model.first.simulate("input", x)
    real = 10 * torch.log10(x.square().sum() / (x - rounded).square().sum())
    assert report.rows[0].decibels["mse"] == pytest.approx(real.item(), abs=0.3)


def test_the_report_draws():
    pytest.importorskip("matplotlib")
    report = calibrated("cross_entropy")[1].report()
    for figure in (report.draw_ranges(), report.draw_ranges(["first.input"]), report.draw_errors()):
        assert rquant.viz.png(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="names: expected names of tensors in the report, got 'frist'"):
        report.draw_ranges(["frist"])
