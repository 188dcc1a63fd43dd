"""An embedding bag with a quantized weight."""

from typing import Any

import torch
from torch import Tensor, nn

from ..scheme import Scheme
from .embedding import Rows
from .registry import register_module


@register_module(nn.EmbeddingBag, by_default=False)
class EmbeddingBag(Rows, nn.EmbeddingBag):
    """`nn.EmbeddingBag` with weight `[num_embeddings, embedding_dim]` in int8, int4 or int2.

    Made by `from_float` or `rquant.quantize`, there only where `include` or a rule names it. Only the rows that a bag
    asks for are dequantized.
    """

    @classmethod
    def wrap(cls, bag: Any, scheme: Scheme) -> "EmbeddingBag":  # type: ignore[override]
        """An unfrozen layer around the very Parameter of `bag`."""
        weight = cls.checked(bag, nn.EmbeddingBag)
        layer = cls(
            *weight.shape,
            scale_grad_by_freq=bag.scale_grad_by_freq,
            mode=bag.mode,
            include_last_offset=bag.include_last_offset,
            padding_idx=bag.padding_idx,
            device="meta",
        )
        layer.begin(weight, scheme)
        layer.training = bag.training
        return layer

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """As torch's: bags of rows `input`, `[bags, size]`, or `[total]` cut at `offsets`; output `[bags, embedding_dim]`."""
        ids, rows, padding_idx = input, None, self.padding_idx
        if self.frozen and not input.is_nested:
            # each place of a bag has a row of its own; the one after them stands for the padding
            places = torch.arange(input.numel(), device=input.device).view_as(input)
            wanted = input.flatten()
            if padding_idx is not None:
                ids, padding_idx = places.masked_fill(input == padding_idx, input.numel()), input.numel()
                rows = self.rows(torch.cat([wanted, wanted.new_zeros(1)]))
            else:
                ids, rows = places, self.rows(wanted)
            offsets = None if offsets is None else offsets.long()
        return nn.functional.embedding_bag(
            ids,
            self.dequantize() if rows is None else rows,
            offsets,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding_idx,
        )
