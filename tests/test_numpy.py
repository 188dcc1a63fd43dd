"""The numpy side gives the torch side's bytes and products."""

import numpy as np
import pytest
import torch

import rquant


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_as_torch(name, dtype):
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((20, 70)).astype(dtype), rng.standard_normal((2, 3, 70)).astype(dtype)
    q = rquant.numpy.quantize(w, name)
    t = rquant.quantize_tensor(torch.from_numpy(w), name)
    assert np.array_equal(q.int_repr(), t.int_repr().numpy())
    assert np.array_equal(q.scale, t.scale.numpy())
    assert np.array_equal(q.zero_point, t.zero_point.numpy())
    assert q.nbytes == t.nbytes
    assert np.array_equal(rquant.numpy.dequantize(q), t.dequantize().numpy())
    linear = torch.nn.Linear(70, 20)
    linear.weight.data = torch.from_numpy(w).float()
    bias = linear.bias.detach().numpy()
    for activations in (None, "int8"):
        layer = rquant.Linear.from_float(linear, name, activations)
        y = rquant.numpy.linear(x, q, bias, activations)
        assert y.dtype == dtype
        assert y.shape == (2, 3, 20)
        assert np.array_equal(y, layer(torch.from_numpy(x)).detach().numpy())


def test_strided_and_empty_inputs():
    w = np.asfortranarray(np.random.default_rng(0).standard_normal((8, 16), np.float32))
    q = rquant.numpy.quantize(w)
    wide = np.ones((4, 32), np.float32)
    y = rquant.numpy.linear(wide[:, ::2], q)
    assert np.allclose(y, np.ones((4, 16)) @ rquant.numpy.dequantize(q).T, atol=1e-5)
    assert rquant.numpy.linear(np.ones((0, 16), np.float32), q).shape == (0, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: rquant.numpy.quantize(w.astype(np.float64)), "x: .*float64"),
        (lambda w: rquant.numpy.quantize(w[0]), r"x: expected 2 dimensions, got shape \(16,\)"),
        (lambda w: rquant.numpy.quantize(np.where(w == w[1, 2], np.nan, w)), r"x: .*\[1, 2\]"),
        (lambda w: rquant.numpy.linear(w[:, :5], rquant.numpy.quantize(w)), r"x: .*16, got shape \(8, 5\)"),
        (
            lambda w: rquant.numpy.linear(w, rquant.numpy.quantize(w), w[0]),
            "bias: expected 8 elements, got 16",
        ),
        (lambda w: rquant.numpy.linear(w.astype(int), rquant.numpy.quantize(w)), "x: .*int64"),
        (
            lambda w: rquant.numpy.linear(w, rquant.numpy.quantize(w), activations="int4"),
            "activations: .*'int4'",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).standard_normal((8, 16), np.float32))
