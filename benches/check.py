"""Is a quantized layer's output what its own integers say it must be?"""

import torch

import rquant

TOLERANCE = 1e-5  # of the sum of |x||w|, an element


def check_linear(layer, linear: torch.nn.Linear, x: torch.Tensor, integer: bool) -> None:
    """Raise if `layer(x)` is not `x @ dequantize(W).T + bias` to float rounding; `x` is float32 `[m, k]`.

    With `integer`, x is first rounded to int8 a row, as the layer does it.
    """
    weight = layer.weight.dequantize().to(torch.float64)
    if integer:
        x = rquant.quantize_tensor(x, rquant.qint8, symmetric=True, axis=0).dequantize()
    x = x.to(torch.float64)
    want = x @ weight.T + linear.bias
    bound = TOLERANCE * (x.abs() @ weight.abs().T + linear.bias.abs())
    error = (layer(x.float()) - want).abs()
    if not (error <= bound).all():
        raise AssertionError(f"{layer}: error {(error / bound).max():.2f} times the bound")
