"""An exact change of basis of a Llama's residual stream: the same function, other weights.

A model whose weights came out of a 4-bit file lies on that file's grid: quantized to such a grid again it looks perfect,
which says nothing of the method. Rotating pairs of residual channels takes every matrix off the grid.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


def pair_rotation(size: int, seed: int = 0) -> Tensor:
    """Orthogonal float64 `[size, size]` (size even): each channel is mixed with one other, by an angle of 30 to 60 degrees."""
    random = torch.Generator().manual_seed(seed)
    first, second = torch.randperm(size, generator=random).reshape(2, -1)
    angle = torch.pi / 6 * (1 + torch.rand(size // 2, generator=random, dtype=torch.float64))
    rotation = torch.zeros(size, size, dtype=torch.float64)
    rotation[first, first] = rotation[second, second] = angle.cos()
    rotation[first, second], rotation[second, first] = angle.sin(), -angle.sin()
    return rotation


@torch.no_grad()
def rotate(model: LlamaForCausalLM, rotation: Tensor) -> LlamaForCausalLM:
    """Fold `rotation` into the model, in place: norms' gains go into the matrices that read them, and become 1.

    The output layer gets a weight of its own if it shared the embedding's, as its norm's gain is not the embedding's.
    """

    def replace(layer: nn.Module, weight: Tensor) -> None:
        layer.weight = nn.Parameter(weight.float(), requires_grad=False)

    def read(norm: nn.Module, *layers: nn.Module) -> None:
        for layer in layers:
            replace(layer, layer.weight.double() * norm.weight.double() @ rotation)
        replace(norm, torch.ones_like(norm.weight))

    body = model.model
    read(body.norm, model.lm_head)
    replace(body.embed_tokens, body.embed_tokens.weight.double() @ rotation)
    for block in body.layers:
        attention, mlp = block.self_attn, block.mlp
        read(block.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        read(block.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        for writer in (attention.o_proj, mlp.down_proj):
            replace(writer, rotation.T @ writer.weight.double())
    model.config.tie_word_embeddings = False
    return model
