"""A transformers Llama as an arm: in float32, in bfloat16, or with rquant's layers."""

import copy
from collections.abc import Callable

import torch
from measure import resident_bytes
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM

import rquant

LINEAR_PASSES = 4  # passes over all linear layers a turn
Work = tuple[Callable[[], None], int]


class TorchArm:
    """A model run by transformers, with a key-value cache that grows."""

    def __init__(self, model: LlamaForCausalLM):
        self.model = model
        self.bytes = resident_bytes(model)
        self._cache = DynamicCache(config=model.config)
        dtype = model.model.norm.weight.dtype
        linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        self._linears = [(layer, torch.randn(1, 1, layer.in_features).to(dtype)) for layer in linears]

    def logits(self, tokens: Tensor) -> Tensor:
        """At every token, float32 `[tokens, vocabulary]`."""
        return self.model(input_ids=tokens[None], use_cache=False).logits[0].float()

    def decoded(self, tokens: Tensor) -> list[Tensor]:
        """The last token's logits `[vocabulary]` with the others cached: by the model's forward and by `lean`."""
        found = []
        for step in (self._forward, self.lean):
            self.read(tokens[:-1])
            found.append(step(tokens[None, -1:])[0, -1].float())
        return found

    def read(self, tokens: Tensor) -> None:
        """Forget everything, then take `tokens` in one forward."""
        self._cache = DynamicCache(config=self.model.config)
        self._forward(tokens[None])

    def works(self, tokens: Tensor) -> dict[str, Work]:
        """What is timed once the prompt is read, and how many tokens each call is.

        `decode` is the model's forward, a token at a time. `lean` does without what transformers does around its
        blocks (masks, positions, keyword arguments' checks). `linears` is each linear layer of the model once in turn, as one
        token needs them and nothing else.
        """
        singles = tokens[:, None, None].unbind()
        few = singles[: max(1, len(singles) // 2)]
        length = self._cache.get_seq_length()

        def decode() -> None:
            for token in singles:
                self._forward(token)

        def lean() -> None:
            self._cache.crop(length - self._cache.get_seq_length())  # negative: so many fewer
            for token in few:
                self.lean(token)

        def linears() -> None:
            for _ in range(LINEAR_PASSES):
                for layer, x in self._linears:
                    layer(x)

        return {
            "decode": (decode, len(singles)),
            "lean": (lean, len(few)),
            "linears": (linears, LINEAR_PASSES),
        }

    def lean(self, token: Tensor) -> Tensor:
        """Logits `[1, 1, vocabulary]` of the next token, `[1, 1]`: the blocks one after the other."""
        inner = self.model.model
        position = torch.tensor([[self._cache.get_seq_length()]])
        hidden = inner.embed_tokens(token)
        turns = inner.rotary_emb(hidden, position_ids=position)
        for block in inner.layers:
            hidden = block(
                hidden,
                attention_mask=None,
                position_ids=position,
                past_key_values=self._cache,
                position_embeddings=turns,
            )
        return self.model.lm_head(inner.norm(hidden))

    def close(self) -> None:
        """Give the memory back."""
        del self.model, self._linears, self._cache

    def _forward(self, tokens: Tensor) -> Tensor:
        return self.model(
            input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits


def twin(model: nn.Module) -> nn.Module:
    """A copy with modules of its own and the very tensors of `model`."""
    return copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})


def bfloat16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy in bfloat16; angles stay float32, as where transformers loads a model in bfloat16."""
    other = copy.deepcopy(model).to(torch.bfloat16)
    other.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return other


def packed(model: LlamaForCausalLM, weights: str, group_size: int | None) -> LlamaForCausalLM:
    """Every linear layer and the embedding in `weights`; `model` stays as it is."""
    other = twin(model)
    rquant.quantize(other, weights, group_size=group_size, include="*")
    rquant.freeze(other)
    return other


def with_int8_activations(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same packed weights with integer arithmetic."""
    other = twin(model)
    for layer in other.modules():
        if isinstance(layer, rquant.Linear):
            layer.activations = rquant.qint8
    return other
