"""Tensor parallelism (Shoeybi et al. 2019, <https://arxiv.org/abs/1909.08053>): frozen layers over the ranks of a mesh.

    from torch.distributed.tensor.parallel import parallelize_module
    plan = {"q_proj": rquant.distributed.ColwiseParallel(), "o_proj": rquant.distributed.RowwiseParallel()}
    parallelize_module(model, mesh, plan)

The styles stand beside torch's own, take the same arguments and leave a layer that is not quantized to them. Each rank
cuts its part out of the canonical weight that it holds (the same on all ranks) and packs it anew. Needs torch >= 2.5.
"""

import math
from abc import abstractmethod
from dataclasses import replace

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, parallel

from ._backends.reference import scale_of
from ._native import QMatrix
from .io.safetensors_header import PathLike
from .nn import Linear, PackedWeight, storage
from .serialize.files import opened
from .serialize.modelmap import Source, frozen_layers, join, read_packed, rebuild

__all__ = ["ColwiseParallel", "RowwiseParallel", "load"]


class ShardedLinear(Linear):
    """One rank's part of a `Linear`. Its state dict has the part, and `in_features` and `out_features` are the part's."""

    mesh: DeviceMesh
    style: "ColwiseParallel | RowwiseParallel"

    @staticmethod
    @abstractmethod
    def cut(q: QMatrix, rank: int, ranks: int) -> QMatrix:
        """This rank's part of a whole weight. Raises ValueError for a size that cannot be cut."""

    @classmethod
    def of(cls, layer: nn.Module, mesh: DeviceMesh, style: "ColwiseParallel | RowwiseParallel") -> nn.Module:
        """Cut a frozen `layer` down to this rank's part, in place (a style is given the module, not its parent)."""
        if type(layer) is not Linear:
            raise TypeError(
                f"module: expected rquant.Linear or a float layer, got {type(layer).__name__}, which is not cut"
            )
        if not layer.frozen:
            raise ValueError(
                "module: expected a frozen layer, got an unfrozen one; call rquant.freeze(model) before parallelize_module"
            )
        if mesh.ndim != 1:
            raise ValueError(
                f"device_mesh: expected 1 dimension, got {mesh.ndim}; give one of them by its name"
            )
        q = cls.cut(layer.canonical(), mesh.get_local_rank(), mesh.size())
        bias = layer._parameters["bias"]
        layer.__class__ = cls
        assert isinstance(layer, ShardedLinear)
        layer.mesh, layer.style = mesh, style
        layer.out_features, layer.in_features = q.codes.shape[0], q.cols
        layer.hold(storage.hold(q, q.codes.device))
        if bias is not None:
            layer.bias = nn.Parameter(layer.bias_part(bias.detach()).clone(), bias.requires_grad)
        return layer

    @abstractmethod
    def bias_part(self, bias: Tensor) -> Tensor:
        """What this rank keeps of a whole bias."""

    def _local(self, x: Tensor, wanted: Placement, gradient: Placement) -> Tensor:
        """The rank's own tensor of an input in the style's layout, once it is `wanted`; `gradient` is how its gradient lies."""
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, self.mesh, self.style.input_layouts, run_check=False)
        return x.redistribute(placements=(wanted,)).to_local(grad_placements=(gradient,))

    def _given(self, y: DTensor) -> Tensor:
        y = y.redistribute(placements=self.style.output_layouts)
        return y.to_local() if self.style.use_local_output else y

    def extra_repr(self) -> str:
        """A Linear's, and which part it is."""
        return f"{super().extra_repr()}, rank {self.mesh.get_local_rank()} of {self.mesh.size()}"


class ColwiseLinear(ShardedLinear):
    """Some of the output features: the output of all ranks, side by side, is bit for bit that of one process."""

    @staticmethod
    def cut(q: QMatrix, rank: int, ranks: int) -> QMatrix:
        """Rows of the weight `[n, k]`. Raises ValueError unless `ranks` divides n."""
        n = _part("out_features", q.codes.shape[0], ranks, 1, "")
        return q.map(lambda t: t[rank * n : (rank + 1) * n])

    def bias_part(self, bias: Tensor) -> Tensor:
        """The elements of these output features."""
        return bias.chunk(self.mesh.size())[self.mesh.get_local_rank()]

    def forward(self, x: Tensor) -> Tensor:
        """x in the style's input layout; all of it is needed, `[..., in_features]`."""
        y = super().forward(self._local(x, Replicate(), gradient=Partial()))
        return self._given(DTensor.from_local(y, self.mesh, (Shard(-1),), run_check=False))


class RowwiseLinear(ShardedLinear):
    """Some of the input features: the ranks' outputs are summed, in float32, and the bias, which each rank has, is added.

    With int8 activations every rank quantizes its part of a row by the scale of the whole row.
    """

    @staticmethod
    def cut(q: QMatrix, rank: int, ranks: int) -> QMatrix:
        """Columns of the weight `[n, k]`, whole groups and bytes. Raises ValueError if `ranks` parts are not that."""
        per_byte = 8 // q.bits
        step, why = per_byte, f"{per_byte} codes a byte"
        if q.group_size != -1:
            step, why = math.lcm(per_byte, q.group_size), f"groups of {q.group_size}, {why}"
        k = _part("in_features", q.cols, ranks, step, why)
        width, groups = k // per_byte, 1 if q.group_size == -1 else k // q.group_size
        codes = q.codes[:, rank * width : (rank + 1) * width]
        codes = nn.functional.pad(codes, (0, -width % 4))  # rows are padded to 4 bytes
        first = 0 if q.group_size == -1 else rank * groups
        scale = q.scale[:, first : first + groups]
        zero = None if q.zero_point is None else q.zero_point[:, first : first + groups]
        return QMatrix(codes, scale, zero, k, q.kind, q.group_size)

    def bias_part(self, bias: Tensor) -> Tensor:
        """All of it."""
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """x in the style's input layout; a part of its last dimension is needed, `[..., in_features]`."""
        x = self._local(x, Shard(x.ndim - 1), gradient=Shard(x.ndim - 1))
        scale = None
        if self.activations is not None:
            most = DTensor.from_local(x.detach().float().abs().amax(-1), self.mesh, (Partial("max"),))
            scale = scale_of(most.redistribute(placements=(Replicate(),)).to_local())
        y = self.multiply(x.float(), None, scale)  # partial sums are not to be rounded to a narrow dtype
        y = DTensor.from_local(y, self.mesh, (Partial(),)).redistribute(placements=self.style.output_layouts)
        if self.bias is not None:
            y = y + DTensor.from_local(self.bias, self.mesh, (Replicate(),), run_check=False)
        return self._given(y.to(x.dtype))


def _part(argument: str, size: int, ranks: int, step: int, why: str) -> int:
    if size % (ranks * step):
        parts = f"{ranks} ranks" + (f" x {step} ({why})" if step > 1 else "")
        raise ValueError(f"{argument}: expected a multiple of {ranks * step} = {parts}, got {size}")
    return size // ranks


class ColwiseParallel(parallel.ColwiseParallel):
    """Each rank computes some output features of a frozen `rquant.Linear`: `==` one process. Arguments are torch's.

    `input_layouts`: how x lies, by default whole on each rank; `output_layouts`: by default cut in the last dimension;
    `use_local_output`: a plain tensor, not a DTensor. Raises ValueError for a layer that is not frozen and for
    out_features that the ranks do not divide, TypeError for other quantized modules.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if isinstance(module, PackedWeight):
            return ColwiseLinear.of(module, device_mesh, self)
        return super()._apply(module, device_mesh)


class RowwiseParallel(parallel.RowwiseParallel):
    """Each rank computes with some input features of a frozen `rquant.Linear`, and the outputs are summed.

    Equal to one process up to the order of the float sum. `input_layouts`: how x lies, by default cut in the last dimension;
    `output_layouts`: by default whole on each rank. Raises ValueError for a layer that is not frozen and for in_features
    whose parts are not whole groups and bytes, TypeError for other quantized modules.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if isinstance(module, PackedWeight):
            return RowwiseLinear.of(module, device_mesh, self)
        return super()._apply(module, device_mesh)


def load(
    path: PathLike,
    model: nn.Module,
    device_mesh: DeviceMesh,
    parallelize_plan: dict[str, parallel.ParallelStyle],
) -> nn.Module:
    """`rquant.load`, then `parallelize_module`; of a weight that is cut, a rank copies and packs its own part alone.

    (It reads all of a file that has checksums, to verify them.) `model`: the float skeleton, best built under `torch.device("meta")`. A tied weight is first loaded whole. Raises what
    both raise.
    """
    with opened(path, model) as (config, source):
        tied = {name for names in config["ties"] for name in names}
        alone = [name for name in config["modules"] if join(name, "weight") not in tied]
        later = {join(name, part) for name in alone for part in storage.CANONICAL}

        def sizes_only(name: str) -> Tensor:
            return source.get(name).to("meta") if name in later else source.get(name)

        def verify(name: str) -> None:  # the others once they are read
            if name not in later:
                source.verify(name)

        rebuild(model, config, replace(source, get=sizes_only, verify=verify))
        shapes = {name: layer.weight_shape for name, layer in frozen_layers(model).items()}
        parallel.parallelize_module(model, device_mesh, parallelize_plan)
        for name, layer in frozen_layers(model).items():
            if layer.compute_like.is_meta:
                layer.hold(*read_packed(name, layer, _part_of(source, name, layer, shapes[name][1])))
    return model


def _part_of(source: Source, name: str, layer: PackedWeight, cols: int) -> Source:
    """A source of what `layer` needs of its weight, `cols` wide before it was cut."""
    keys = [join(name, part) for part in layer.stored_names()]
    tensors = {key: source.get(key) for key in keys}
    if isinstance(layer, ShardedLinear):
        codes, scale, zero = [*tensors.values(), None][:3]
        whole = QMatrix(codes, scale, zero, cols, layer.scheme.kind, layer.scheme.group_size)  # type: ignore[arg-type]
        parts = layer.cut(whole, layer.mesh.get_local_rank(), layer.mesh.size())
        tensors = dict(zip(keys, parts, strict=False))
    return replace(source, get=tensors.__getitem__)
