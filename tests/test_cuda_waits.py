"""What runs on a device asks it nothing and copies nothing to it: else no graph could be captured, and every call would wait."""

import cuda_emulator
import cuda_pose
import pytest
import test_ops
import test_static_ops
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rquant import optimize
from rquant._backends import reference, static_canonical, static_reference

WAITS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "lift_fresh"}
PANELS = {"linear_static", "conv_static", "conv_fixed_static"}  # forms of a weight that only the CPU holds
# a list of columns becomes a tensor, once a call; a threshold's columns become a list
LISTS = {"round_rows", "linear_outliers_canonical", "linear_outliers_unfrozen"}


class Watch(TorchDispatchMode):
    """Notes what would wait for a device, or copy to it from a list."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        masked = name == "index" and any(at is not None and at.dtype == torch.bool for at in arguments[1])
        if name in WAITS or masked:
            self.seen.add(name)
        return function(*arguments, **(kwargs or {}))


def test_the_watch_sees_what_waits():
    x = torch.ones(3)
    for wait in (
        x.sum().item,
        lambda: bool(x[0]),
        lambda: torch.equal(x, x),
        lambda: x[x > 0],
        lambda: torch.tensor([1]),
    ):
        with Watch() as watch:
            wait()
        assert watch.seen


def test_references_do_not_wait():
    """Of ops that have no kernel of their own on CUDA, and of those whose kernel is not for every weight."""
    w, scheme = torch.randn(20, 50), (4, 16, False, "minmax")
    calls = list(test_ops.calls((w, optimize.by_arguments(w, *scheme), scheme)))
    ran = set()
    for name, arguments in [*calls, *test_static_ops.calls()]:
        referred = any(hasattr(module, name) for module in (reference, static_reference, static_canonical))
        if referred and name not in PANELS | LISTS:
            with Watch() as watch:
                cuda_pose.kernel_of(name, "XPU")(*arguments)
            assert not watch.seen, name
            ran.add(name)
    assert ran >= {
        "linear_canonical",
        "linear_unfrozen",
        "fake_quantize",
        "inside_range",
        "embedding_canonical",
    }
    assert ran >= {
        "conv_canonical_static",
        "concat_static",
        "adaptive_avg_pool_static",
        "layer_norm_static",
        "add_static",
    }


@pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")
def test_kernels_are_launched_without_waiting(cuda_driver, cubins):
    """From the second call on: the first copies lists of columns, and sums up weights. LLM.int8() by a threshold too."""
    said = cuda_emulator.run(
        """
import warnings; warnings.simplefilter("ignore")
import cuda_pose, test_ops, test_static_ops, test_cuda_waits
from rquant import optimize
w, scheme = torch.randn(20, 50), (8, -1, True, "minmax")
calls = [*test_ops.calls((w, optimize.by_arguments(w, *scheme), scheme)), *test_static_ops.calls()]
for name, arguments in calls:
    if f"rquant::{name}" in cuda_pose.names():
        kernel = cuda_pose.kernel_of(name)
        kernel(*arguments)
        with test_cuda_waits.Watch() as watch:
            kernel(*arguments)
        assert not watch.seen, (name, watch.seen)
        print(name)
""",
        cuda_driver,
        cubins,
    )
    assert set(said.split()) >= {"linear_canonical", "linear_canonical_static", "linear_outliers_canonical"}
