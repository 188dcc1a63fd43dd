"""onnxruntime: DynamicQuantizeMatMul, and MatMulNBits, which quantizes activations itself at accuracy level 4.

All sessions share one pool of threads, so that copies of a layer do not spin against each other. Input and output are
bound where torch has them. Weights are symmetric: that form needs no zero points, and is onnxruntime's faster one.
"""

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from . import PER_CHANNEL, Arm, Kind, Layer
from .rounding import pack_bits, round_weight


@lru_cache(maxsize=1)
def options(threads: int):
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    return options


def sessions(kind: Kind, node, constants: dict[str, np.ndarray], n: int, k: int, count: int) -> list[Layer]:
    """Copies of a model of one node."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    nbytes = sum(value.nbytes for value in constants.values())

    def layer() -> Layer:
        session = onnxruntime.InferenceSession(model, options(kind.threads), ["CPUExecutionProvider"])

        def bind(x: Tensor):
            y = torch.empty(len(x), n)
            binding = session.io_binding()
            binding.bind_input("x", "cpu", 0, np.float32, tuple(x.shape), x.data_ptr())
            binding.bind_output("y", "cpu", 0, np.float32, tuple(y.shape), y.data_ptr())

            def run(x=x, execute=session._sess.run_with_iobinding, bound=binding._iobinding) -> Tensor:
                execute(bound, None)
                return y

            return run

        return Layer(bind, nbytes, [session])

    return [layer() for _ in range(count)]


def dynamic(kind: Kind, weight: Tensor, count: int) -> list[Layer]:
    from onnx import helper

    n, k = weight.shape
    codes, scale, _ = round_weight(weight, 8, PER_CHANNEL, True)
    signed = (codes ^ 128).view(torch.int8).flatten(1).T.contiguous().numpy()
    constants = {"w": signed, "scale": scale.flatten().numpy(), "zero": np.zeros(n, np.int8)}
    names = ["x", "w", "scale", "zero"]
    node = helper.make_node("DynamicQuantizeMatMul", names, ["y"], domain="com.microsoft")
    return sessions(kind, node, constants, n, k, count)


def n_bits(kind: Kind, group: int, level: int, weight: Tensor, count: int) -> list[Layer]:
    from onnx import helper

    n, k = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -k % group))
    codes, scale, _ = round_weight(padded, kind.bits, group, True)
    constants = {"w": pack_bits(codes.numpy(), kind.bits), "scale": scale.numpy()}
    if kind.bits != 4:  # 4-bit weights are centred on 8 unless told otherwise; say so for the others
        middle = np.full((n, scale.shape[1]), 2 ** (kind.bits - 1), np.uint8)
        constants["zero"] = pack_bits(middle, kind.bits)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        K=k,
        N=n,
        bits=kind.bits,
        block_size=group,
        accuracy_level=level,
    )
    return sessions(kind, node, constants, n, k, count)


def arms(kind: Kind) -> Iterator[Arm]:
    if kind.bits == 8 and kind.integer:
        yield Arm("ort-dynamic", PER_CHANNEL, partial(dynamic, kind), "one activation scale a tensor")
    for group in (32, 64, 128):
        yield Arm(
            f"ort-int{kind.bits}-g{group}", group, partial(n_bits, kind, group, 4 if kind.integer else 0)
        )
