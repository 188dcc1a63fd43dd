"""Tensors of the device `far` posing as CUDA's: its ops are those of rquant's CUDA back end, on the emulated driver.

For scripts after `cuda_emulator.BEGIN`: whole models go `.to("far")` and run the kernels, as they would `.to("cuda")`.
"""

from functools import partial

import far_device
import torch
from torch.utils._pytree import tree_map_only

from rquant import _static_ops  # noqa: F401 (registers ops)


def names():
    """Ops that have a CUDA kernel."""
    every = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("rquant::"))
    return sorted(n for n in every if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CUDA"))


def kernel_of(name, device="CUDA"):
    """The op's kernel for a kind of device, called with tensors wherever they are; "XPU" has the reference."""
    op = getattr(torch.ops.rquant, name.removeprefix("rquant::")).default
    return partial(op.redispatch, torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, device)))


def install():
    """Make the device. Returns what must stay alive with it."""
    keep = far_device.install()
    library = torch.library.Library("rquant", "IMPL")
    for name in names():
        library.impl(name.removeprefix("rquant::"), _posing(kernel_of(name)), "PrivateUse1")
    return keep, library


def _posing(kernel):
    def run(*arguments):
        out = kernel(*tree_map_only(far_device.Far, lambda far: far.near, arguments))
        return tree_map_only(torch.Tensor, far_device.Far, out)

    return run
