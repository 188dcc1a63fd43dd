"""Tiny transformers models of many architectures, from their configurations, with inputs and one tensor of their output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


class DenoiserConfig(PretrainedConfig):
    """Sizes of `Denoiser`."""

    model_type = "rquant-test-denoiser"

    def __init__(self, channels: int = 32, **more: Any) -> None:
        self.channels = channels
        super().__init__(**more)


class Denoiser(PreTrainedModel):
    """Shaped like a diffusion model: convolutions down and up, a time embedding, attention in the middle."""

    config_class = DenoiserConfig
    base_model_prefix = "unet"

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        c = config.channels
        self.time = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, c))
        self.down = nn.Conv2d(4, c, 3, 2, 1)
        self.norm = nn.GroupNorm(4, c)
        self.to_qkv, self.to_out = nn.Linear(c, 3 * c, bias=False), nn.Linear(c, c)
        self.up = nn.ConvTranspose2d(c, 4, 4, 2, 1)
        self.register_buffer("frequencies", torch.arange(c).float(), persistent=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Denoiser):
            module.frequencies.copy_(torch.arange(self.config.channels).float())

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Noise in `sample` `[batch, 4, h, w]` at `timestep` `[batch]`."""
        x = (
            self.down(sample)
            + self.time(torch.sin(timestep[:, None] / (self.frequencies + 1)))[:, :, None, None]
        )
        b, c, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        mixed = self.to_out(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.up(x + mixed.transpose(1, 2).reshape(b, c, h, w))


@dataclass(frozen=True)
class Architecture:
    """`auto`: the class to load with; `outputs`: its part of the model's output."""

    auto: Any
    config: Callable[[], PretrainedConfig]
    inputs: Callable[[], dict[str, Tensor]]
    outputs: Callable[[Any], Tensor]

    def build(self, **changes: Any) -> PreTrainedModel:
        """The float model with random weights, the same each time."""
        config = self.config()
        config.update(changes)
        torch.manual_seed(0)
        model = self.auto(config) if self.auto is Denoiser else self.auto.from_config(config)
        return model.eval()

    def run(self, model: PreTrainedModel) -> Tensor:
        """The output for the architecture's inputs, floats in the model's dtype."""
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in self.inputs().items()}
        with torch.inference_mode():
            return self.outputs(model(**inputs))


def ids(batch: int = 2, length: int = 7) -> Tensor:
    """Tokens from 3 to 90."""
    return torch.randint(3, 90, (batch, length), generator=torch.Generator().manual_seed(1))


def images(size: int = 32) -> Tensor:
    """Two images `[2, 3, size, size]`."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def tokens() -> dict[str, Tensor]:
    """Inputs of a language model."""
    return {"input_ids": ids()}


def logits(output: Any) -> Tensor:
    """What most models return."""
    return output.logits


def llama(**more: Any) -> PretrainedConfig:
    """Grouped-query attention; nothing tied unless asked."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaConfig(
        **{**sizes, **heads, "pad_token_id": 0, "tie_word_embeddings": False, **more}
    )


def whisper() -> PretrainedConfig:
    """Two encoder and two decoder layers; 20 frames of 16 mel bands."""
    return transformers.WhisperConfig(
        vocab_size=96, num_mel_bins=16, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=10,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip


def detr() -> PretrainedConfig:
    """A ResNet, an encoder and a decoder over its features, five boxes."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    return transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, num_queries=5,
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_labels=4,
    )  # fmt: skip


CAUSAL = transformers.AutoModelForCausalLM
ARCHITECTURES = {
    "llama": Architecture(CAUSAL, llama, tokens, logits),
    "gpt2": Architecture(
        CAUSAL, lambda: transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=32),
        tokens, logits,
    ),
    "opt": Architecture(
        CAUSAL, lambda: transformers.OPTConfig(
            vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
            word_embed_proj_dim=24, max_position_embeddings=32, do_layer_norm_before=True, pad_token_id=1,
        ), tokens, logits,
    ),
    "bert": Architecture(
        transformers.AutoModelForMaskedLM, lambda: transformers.BertConfig(
            vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=32,
        ), tokens, logits,
    ),
    "t5": Architecture(
        transformers.AutoModelForSeq2SeqLM, lambda: transformers.T5Config(
            vocab_size=96, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
            pad_token_id=0, feed_forward_proj="gated-gelu",
        ), lambda: {"input_ids": ids(), "decoder_input_ids": ids(2, 5)}, logits,
    ),
    "whisper": Architecture(
        transformers.AutoModelForSpeechSeq2Seq, whisper,
        lambda: {"input_features": images(20)[:, 0, :16].contiguous(), "decoder_input_ids": ids(2, 5)}, logits,
    ),
    "mixtral": Architecture(
        CAUSAL, lambda: transformers.MixtralConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
        ), tokens, logits,
    ),
    "detr": Architecture(
        transformers.AutoModelForObjectDetection, detr, lambda: {"pixel_values": images()}, lambda o: o.pred_boxes
    ),
    "denoiser": Architecture(
        Denoiser, DenoiserConfig,
        lambda: {"sample": images(16).repeat(1, 2, 1, 1)[:, :4], "timestep": torch.tensor([3.0, 700.0])}, lambda o: o,
    ),
}  # fmt: skip
