"""A device `far` without kernels of anybody's, in plain Python: its tensors keep their bytes in CPU tensors.

`install()` is once for a process. What torch does on the device it does on the bytes; no view shares them, which is enough
for what computes without writing into views.
"""

import torch
from torch.utils._pytree import tree_map_only


class Far(torch.Tensor):
    """A tensor of the device, whose values are in `near`, contiguous."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        far = torch._C._acc.create_empty_tensor(near.shape, near.dtype)
        far.__class__ = cls
        return far

    def __init__(self, near):
        alone = near.is_contiguous() and near._base is None
        self.near = near if alone else near.clone(memory_format=torch.contiguous_format)


def _on_the_bytes(op, *args, **kwargs):
    if op is torch.ops.aten._copy_from.default:
        source, target, *_ = args
        getattr(target, "near", target).copy_(getattr(source, "near", source))
        return target
    far_of = {}

    def near(far):
        far_of[id(far.near)] = far
        return far.near

    args, kwargs = tree_map_only(Far, near, (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    out = op.overloadpacket(*args, **kwargs)  # a number may stand where this overload has a tensor
    return tree_map_only(torch.Tensor, lambda t: far_of[id(t)] if id(t) in far_of else Far(t), out)


def _alone(op):
    return lambda far, *rest: Far(op(far.near, *rest))


def _convolution(x, weight, bias, *rest):
    """What torch asks of such a device for any convolution."""
    return Far(torch.ops.aten.convolution(x.near, weight.near, None if bias is None else bias.near, *rest))


def install():
    """Make `torch.device("far")`. Returns what must stay alive with it."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("far")
    fallback, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(_on_the_bytes, "PrivateUse1")
    # torch's own kernels for any device would look for memory of theirs, or write into views
    for name in ("alias", "detach", "abs", "constant_pad_nd"):
        aten.impl(name, _alone(getattr(torch.ops.aten, name)), "PrivateUse1")
    aten.impl("convolution_overrideable", _convolution, "PrivateUse1")
    return fallback, aten
