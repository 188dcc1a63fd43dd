"""OpenVINO: a compressed constant, decompressed within the matrix product; integer by dynamic quantization.

A model is compiled for its number of rows where calls are short, since that saves 3 µs of each; else once for any number
of rows. Compiling takes long, so there are few copies.
"""

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from . import PER_CHANNEL, Arm, Kind, Layer
from .rounding import pack_bits, round_weight

SHORT = 2**24  # multiplications of a call
COPIES = 5


@lru_cache(maxsize=1)
def core():
    import openvino

    return openvino.Core()


def model(kind: Kind, group: int, symmetric: bool, weight: Tensor, keep: list):
    """Rows -> the model; `keep` gets the arrays whose memory its constants share."""
    import openvino as ov
    from openvino import opset15 as op

    n, k = weight.shape
    codes, scale, zero = round_weight(weight, kind.bits, group, symmetric)
    bits, (_, groups, each) = kind.bits, codes.shape
    types = {(8, True): "i8", (4, True): "i4", (8, False): "u8", (4, False): "u4", (2, False): "u2"}

    def constant(values: Tensor, shape: list[int], signed: bool):
        values = values.numpy().reshape(-1)
        if signed:
            values = values ^ 2 ** (bits - 1)
        keep.append(pack_bits(values, bits))
        tensor = ov.Tensor(keep[-1], ov.Shape(shape), getattr(ov.Type, types[bits, signed]))
        return op.convert(op.constant(tensor, shared_memory=True), ov.Type.f32)

    keep.append(scale.numpy().reshape(n, groups, 1))
    scales = op.constant(keep[-1], shared_memory=True)

    def build(rows: int):
        x = op.parameter([rows, k], ov.Type.f32)
        w = constant(codes, [n, groups, each], symmetric)
        if not symmetric:
            w = op.subtract(w, constant(zero, [n, groups, 1], False))
        w = op.reshape(op.multiply(w, scales), op.constant(np.array([n, k])), False)
        return ov.Model([op.matmul(x, w, False, True)], [x])

    return build


def compressed(kind: Kind, group: int, symmetric: bool, weight: Tensor, count: int) -> list[Layer]:
    import openvino as ov

    keep: list = []
    n, k = weight.shape
    build = model(kind, group, symmetric, weight, keep)
    settings = {
        "INFERENCE_NUM_THREADS": kind.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": (group or k) if kind.integer else 0,
    }
    scales = n * (k // (group or k)) * (4 if symmetric else 5)

    def layer() -> Layer:
        compiled = {}

        def bind(x: Tensor):
            rows = len(x) if n * k * len(x) <= SHORT else -1
            if rows not in compiled:
                compiled[rows] = core().compile_model(build(rows), "CPU", settings)
            request = compiled[rows].create_infer_request()
            y = torch.empty(len(x), n)
            request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))
            request.set_output_tensor(ov.Tensor(y.numpy(), shared_memory=True))

            def run(x=x, infer=request.infer) -> Tensor:
                infer(share_outputs=True)
                return y

            return run

        return Layer(bind, n * k * kind.bits // 8 + scales, keep)

    return [layer() for _ in range(min(count, COPIES))]


def arms(kind: Kind) -> Iterator[Arm]:
    symmetric = kind.bits > 2  # the faster form, but there is no signed 2-bit type
    for group in (PER_CHANNEL, 128) if kind.bits == 8 else (32, 64, 128):
        name = f"openvino-int{kind.bits}" + (f"-g{group}" if group else "")
        yield Arm(name, group, partial(compressed, kind, group, symmetric))
