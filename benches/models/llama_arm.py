"""llama.cpp by its own C interface: batches of token numbers in, logits out; no sampling and no text."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from llama_cpp import llama_cpp as lib
from torch import Tensor

_silent = lib.llama_log_callback(
    lambda level, text, data: None
)  # held here: the library keeps a bare pointer
lib.llama_log_set(_silent, ctypes.c_void_p(0))


class LlamaArm:
    """A GGUF file run on the CPU. A prefill is one batch; flash attention and the cache's type are the defaults."""

    def __init__(self, path: Path, length: int, threads: int):
        """`length`: the most tokens that a sequence will have."""
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        context = lib.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = length
        context.n_threads = context.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no context for {path}")
        self._memory = lib.llama_get_memory(self._context)
        self.bytes = lib.llama_model_size(self._model)

    def logits(self, tokens: Tensor) -> Tensor:
        """At every token, float32 `[tokens, vocabulary]`."""
        lib.llama_memory_clear(self._memory, True)
        count = len(tokens)
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i, token in enumerate(tokens.tolist()):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        self._decode(batch)
        lib.llama_batch_free(batch)
        return self._output(count)

    def decoded(self, tokens: Tensor) -> list[Tensor]:
        """The last token's logits `[vocabulary]` with the others cached."""
        self.read(tokens[:-1])
        self._run(tokens[-1:].tolist())
        return [self._output(1)[0]]

    def read(self, tokens: Tensor) -> None:
        """Forget everything, then take `tokens` as one batch."""
        lib.llama_memory_clear(self._memory, False)
        self._run(tokens.tolist())

    def works(self, tokens: Tensor) -> dict[str, tuple[Callable[[], None], int]]:
        """What is timed once the prompt is read, and how many tokens each call is."""
        singles = tokens.tolist()

        def decode() -> None:
            for token in singles:
                self._run([token])

        return {"decode": (decode, len(singles))}

    def close(self) -> None:
        """Give the memory back."""
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def _output(self, count: int) -> Tensor:
        width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        found = np.ctypeslib.as_array(lib.llama_get_logits(self._context), (count, width))
        return torch.from_numpy(found.copy())

    def _run(self, tokens: list[int]) -> None:
        array = (lib.llama_token * len(tokens))(*tokens)
        self._decode(lib.llama_batch_get_one(array, len(tokens)))

    def _decode(self, batch) -> None:
        if status := lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode: {status}")
        lib.llama_synchronize(self._context)


def system_info() -> str:
    """The instruction sets that llama.cpp was built for."""
    return lib.llama_print_system_info().decode().strip()
