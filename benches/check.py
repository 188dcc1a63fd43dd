"""Is a quantized layer's output what its own integers say it must be?"""

import torch

import rquant

TOLERANCE = 1e-5  # of the sum of |x||w|, an element


def check_linear(
    layer,
    linear: torch.nn.Linear,
    x: torch.Tensor,
    integer: bool,
    channels: torch.Tensor | slice = slice(None),
    weight: torch.Tensor | None = None,
) -> None:
    """Raise if `layer(x)` is not `x @ dequantize(W).T + bias` to float rounding; `x` is float32 or bfloat16 `[m, k]`.

    With `integer`, x is first rounded to int8 a row, as the layer does it. `channels`: the outputs that are looked at;
    `weight`: their rows of `layer.weight.dequantize()`, where the caller keeps them.
    """
    if weight is None:
        weight = layer.weight.dequantize()[channels]
    weight = weight.to(torch.float64)
    bias = torch.zeros(1) if linear.bias is None else linear.bias[channels]
    got = layer(x)[:, channels]
    rounded = torch.finfo(got.dtype).eps / 2  # the output, once
    if integer:
        x = rquant.quantize_tensor(x.float(), rquant.qint8, symmetric=True, axis=0).dequantize()
    x = x.to(torch.float64)
    want = x @ weight.T + bias
    bound = TOLERANCE * (x.abs() @ weight.abs().T + bias.abs()) + rounded * want.abs()
    error = (got - want).abs()
    if not (error <= bound).all():
        raise AssertionError(f"{layer}: error {(error / bound).max():.2f} times the bound")
