"""onnxruntime's static int8: `quantize_static` with a scale a weight channel, after its own pre-processing.

Signed activations (S8S8), unsigned ones (U8S8), each written as QDQ pairs that onnxruntime fuses when it loads them, and
the faster of them as operators of integers (QOperator). Shapes are fixed, input and output bound where torch has them.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import Arm, Run


class Pictures:
    """Calibration data as onnxruntime reads it, in batches of the graph's fixed size."""

    def __init__(self, pictures: Tensor, batch: int):
        repeated = pictures.repeat(-(-batch // len(pictures)), 1, 1, 1)
        self.batches = iter(part for part in repeated.split(batch) if len(part) == batch)

    def get_next(self) -> dict | None:
        part = next(self.batches, None)
        return None if part is None else {"x": part.numpy()}


def exported(model: nn.Module, x: Tensor, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (x,), dynamo=True, verbose=False, input_names=["x"], output_names=["y"], opset_version=18
        )
    program.save(file)


def session(threads: int, file: Path, x: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    x, y = x.contiguous(), torch.empty(made.get_outputs()[0].shape)
    binding = made.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, tuple(x.shape), x.data_ptr())
    binding.bind_output("y", "cpu", 0, np.float32, tuple(y.shape), y.data_ptr())

    def run(keep=(made, x), execute=made._sess.run_with_iobinding, bound=binding._iobinding) -> Tensor:
        execute(bound, None)
        return y

    return run


def static(threads: int, activation: str, form: str, model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        exported(model, x, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            small,
            Pictures(pictures, len(x)),
            quant_format=getattr(QuantFormat, form),
            per_channel=True,
            activation_type=getattr(QuantType, activation),
            weight_type=QuantType.QInt8,
        )
        return session(threads, small, x)


def floating(threads: int, model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plain.onnx"
        exported(model, x, file)
        return session(threads, file, x)


def arms(threads: int) -> Iterator[Arm]:
    yield Arm("ort float32", partial(floating, threads))
    yield Arm("ort U8S8 QDQ", partial(static, threads, "QUInt8", "QDQ"))
    yield Arm("ort U8S8 QOperator", partial(static, threads, "QUInt8", "QOperator"))
    yield Arm("ort S8S8 QDQ", partial(static, threads, "QInt8", "QDQ"))
