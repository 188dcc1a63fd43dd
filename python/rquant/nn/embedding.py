"""An embedding with a quantized weight."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import _ops
from ..qtypes import QType, qint8
from ..scheme import GroupSize, Optimizer, Scheme
from . import storage
from .packed_weight import PackedWeight, float_weight
from .registry import register_module

Self = TypeVar("Self", bound="Rows")


class Rows(PackedWeight):
    """What embeddings share: a weight `[num_embeddings, embedding_dim]` that is read by rows."""

    num_embeddings: int
    embedding_dim: int

    @classmethod
    def from_float(
        cls: type[Self],
        embedding: nn.Module,
        weights: QType | str = qint8,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        optimizer: str | Optimizer = "minmax",
    ) -> Self:
        """A frozen layer from a float one, which stays as it is.

        `optimizer` as in `rquant.quantize`. Raises TypeError for another module; ValueError for `max_norm`, which
        rewrites weights in forward, and for NaN or infinity in the weight.
        """
        layer = cls.wrap(embedding, Scheme.resolve(weights, group_size, symmetric, optimizer))
        layer.freeze()
        return layer  # type: ignore[return-value]

    @staticmethod
    def checked(module: nn.Module, expected: type[nn.Module]) -> nn.Parameter:
        """The float weight of a module that can be wrapped."""
        weight = float_weight(module)
        if weight is None or not isinstance(module, expected):
            raise TypeError(f"embedding: expected nn.{expected.__name__}, got {type(module).__name__}")
        if module.max_norm is not None:
            raise ValueError(f"embedding: expected max_norm None, got {module.max_norm}")
        return weight

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this module stays float; None if it need not."""
        return super().refusal(module) or (
            None if module.max_norm is None else "max_norm rewrites its weight"
        )

    @property
    def weight_shape(self) -> tuple[int, int]:
        """`(num_embeddings, embedding_dim)`."""
        return self.num_embeddings, self.embedding_dim

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` (int64 or int32, any shape) of the frozen weight, in the compute dtype."""
        ids, dtype = ids.long(), self.compute_like.dtype
        if self.scheme.qtype.is_cast:
            return nn.functional.embedding(ids, self._buffers[storage.CANONICAL[0]]).to(dtype)  # type: ignore[arg-type]
        if storage.PANELS in self._buffers:
            return _ops.embedding(ids, self._buffers[storage.PANELS], self.embedding_dim, dtype)  # type: ignore[no-any-return]
        codes, scale, zero, *sizes = self.canonical()
        return _ops.embedding_canonical(ids, codes, scale, zero, *sizes, dtype)  # type: ignore[no-any-return]


@register_module(nn.Embedding, by_default=False)
class Embedding(Rows, nn.Embedding):  # type: ignore[misc]  # torch annotates a `freeze` that is not there
    """`nn.Embedding` with weight `[num_embeddings, embedding_dim]` in int8, int4, int2 or float8, each row dequantized when read.

    Made by `from_float` or `rquant.quantize`; tied to a `Linear` it reads its rows out of the shared weight. The output
    has the compute dtype, which follows `.to(dtype)`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        weights: QType | str = qint8,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        optimizer: str | Optimizer = "minmax",
    ) -> None:
        scheme = Scheme.resolve(weights, group_size, symmetric, optimizer)
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.begin(self.weight, scheme)

    @classmethod
    def wrap(cls, embedding: Any, scheme: Scheme) -> "Embedding":  # type: ignore[override]
        """An unfrozen layer around the very Parameter of `embedding`."""
        weight = cls.checked(embedding, nn.Embedding)
        n, k = weight.shape
        layer = cls(n, k, embedding.padding_idx, "meta", weights=scheme.qtype)
        layer.begin(weight, scheme)
        layer.training = embedding.training
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Rows `input` (int64 or int32, any shape) of the weight, `[..., embedding_dim]`."""
        if self.frozen:
            return self.rows(input)
        rows = self.dequantize()
        return nn.functional.embedding(input, rows, self.padding_idx)
