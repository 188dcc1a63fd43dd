"""`nn.MultiheadAttention` with quantized projections (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .container import Container
from .packed_weight import PackedWeight
from .registry import register_module
from .weight_view import WeightView

_WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_INPUT = ("in_proj_weight", "in_proj_bias", *_WEIGHTS)


@register_module(nn.MultiheadAttention)
class MultiheadAttention(Container, nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose projections are the children `q_proj`, `k_proj`, `v_proj` and `out_proj`.

    Made by `rquant.quantize`. Takes and returns what torch's does; nested tensors are an error. Torch's fused paths,
    which would read the weights themselves, are never taken, within `nn.TransformerEncoderLayer` neither.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Its input projections may be parametrized."""
        names = (
            ("in_proj_weight",)
            if module._qkv_same_embed_dim
            else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        )
        computed = any(module._parameters.get(name) is None for name in names)
        return "its weight is computed (parametrization)" if computed else None

    @classmethod
    def split(cls, module: nn.Module) -> "MultiheadAttention":
        """One child per projection; `in_proj_weight` `[3 e, e]` is cut in three. `out_proj` is the very child."""
        own, made = module._parameters, cls.like(module, without=_INPUT)
        if module._qkv_same_embed_dim:
            weights = own["in_proj_weight"].chunk(3)  # type: ignore[union-attr]
        else:
            weights = own["q_proj_weight"], own["k_proj_weight"], own["v_proj_weight"]  # type: ignore[assignment]
        bias = own["in_proj_bias"]
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        made.q_proj, made.k_proj, made.v_proj = map(cls.linear, weights, biases)
        made.out_proj = made._modules.pop("out_proj")  # last, where it computes
        made._qkv_same_embed_dim = False  # for torch: three projections, so no fused path
        for part in (made.q_proj, made.k_proj, made.v_proj):
            part.training = module.training
        return made

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The three input projections `[3 e, e]` as one, to look at; None where key or value have a size of their own."""
        if not self.kdim == self.vdim == self.embed_dim:
            return None
        joined = _Joined(self.q_proj, self.k_proj, self.v_proj)
        return joined.dequantize() if torch.compiler.is_compiling() else WeightView(joined)  # type: ignore[arg-type]

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """The three biases `[3 e]`, a copy."""
        biases = [layer.bias for layer in (self.q_proj, self.k_proj, self.v_proj)]
        return None if biases[0] is None else torch.cat(biases)

    q_proj_weight = property(lambda self: self.q_proj.weight)
    k_proj_weight = property(lambda self: self.k_proj.weight)
    v_proj_weight = property(lambda self: self.v_proj.weight)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: query `[l, n, e]`, key and value `[s, n, e]`, `[n, l, e]` if `batch_first`, or without n.

        Masks are boolean, True to leave out, or float, to add: `attn_mask` `[l, s]` or `[n heads, l, s]`,
        `key_padding_mask` `[n, s]`. `is_causal` only hints at what `attn_mask` says. Returns the output, of query's
        shape, and, if `need_weights`, the weights `[n, l, s]`, per head `[n, heads, l, s]`. Raises ValueError for a shape
        that does not fit.
        """
        if query.dim() not in (2, 3) or query.is_nested:
            raise ValueError(f"query: expected 2 or 3 dimensions and no nested tensor, got {query.dim()}")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal: expected with an attn_mask, of which it is a hint")
        batched = query.dim() == 3
        if not batched:
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = (
            self._heads(project(x), batched)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = _mask(q, k.shape[2], attn_mask, key_padding_mask)
        k, v = self._lengthened(k, self.bias_k), self._lengthened(v, self.bias_v)
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * math.sqrt(1 / self.head_dim) @ k.transpose(2, 3)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """`[n, heads, length, head_dim]`."""
        if not batched:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _lengthened(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with the learned one and the zero one at their end, if there are any."""
        n, heads, _, dim = x.shape
        if bias is not None:
            x = torch.cat([x, bias.view(1, heads, 1, dim).expand(n, -1, -1, -1)], 2)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x


def _mask(q: Tensor, s: int, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    """Both masks as one to add, which broadcasts to `[n, heads, l, s]`."""
    n, heads, length, _ = q.shape
    added = None
    if attn_mask is not None:
        if attn_mask.shape not in ((length, s), (n * heads, length, s)):
            raise ValueError(
                f"attn_mask: expected shape {(length, s)} or {(n * heads, length, s)}, got {tuple(attn_mask.shape)}"
            )
        added = _to_add(attn_mask, q.dtype)
        added = added[None, None] if attn_mask.dim() == 2 else added.unflatten(0, (n, heads))
    if key_padding_mask is not None:
        if key_padding_mask.shape != (n, s):
            raise ValueError(
                f"key_padding_mask: expected shape {(n, s)}, got {tuple(key_padding_mask.shape)}"
            )
        padding = _to_add(key_padding_mask, q.dtype)[:, None, None, :]
        added = padding if added is None else added + padding
    return added


def _to_add(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)
    return mask.to(dtype)


class _Joined:
    """Layers whose weights `WeightView` shows as one, row after row."""

    def __init__(self, *layers: nn.Module) -> None:
        self.layers = layers
        self.float_shape = self.weight_shape = (
            sum(layer.out_features for layer in layers),
            layers[0].in_features,
        )
        self.scheme = ", ".join(dict.fromkeys(str(getattr(layer, "scheme", "float")) for layer in layers))

    @property
    def compute_like(self) -> Tensor:
        first = self.layers[0]
        return first.compute_like if isinstance(first, PackedWeight) else first.weight

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        weights = [m.dequantize() if isinstance(m, PackedWeight) else m.weight for m in self.layers]
        return torch.cat(weights).to(dtype or self.compute_like.dtype)
