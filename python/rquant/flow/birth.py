"""Where a value was made: there it is computed, whoever asks first and wherever that is.

Values are computed late, and kept. One that was made with gradients must have them even if it is first read in
`torch.no_grad()`, and the other way round. And what a block under `torch.utils.checkpoint` gets is computed outside of the
block: what is saved for it in the backward pass is then the same when the block runs again.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Birth:
    """Gradients on or off, and the hooks that took what is saved for them, as they are now."""

    __slots__ = ("grad", "inference", "pack", "reentrant")

    def __init__(self) -> None:
        self.grad, self.inference, self.pack = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            _pack(),
        )
        self.reentrant = not self.grad and _in_reentrant_checkpoint()

    @staticmethod
    def now() -> "Birth | None":
        """None where nothing runs late: in a program that is being compiled."""
        return None if torch.compiler.is_compiling() else Birth()

    def elsewhere(self) -> bool:
        """Whether it was made under others. Raises RuntimeError where its gradient would be lost without a word."""
        grad = torch.is_grad_enabled()
        if self.reentrant if grad else self.grad and _in_reentrant_checkpoint():
            raise RuntimeError(
                "checkpoint: expected use_reentrant=False where quantized layers hand activations on, which are no tensors, "
                "got use_reentrant=True"
            )
        pack = _pack()
        same_hooks = pack is self.pack or pack is _itself
        return grad != self.grad or self.inference != torch.is_inference_mode_enabled() or not same_hooks

    @contextmanager
    def again(self) -> Iterator[None]:
        """As it was. What is saved is saved as it is: hooks that have ended take nothing more."""
        with (
            torch.inference_mode(self.inference),
            torch.set_grad_enabled(self.grad),
            saved_tensors_hooks(_itself, _itself),
        ):
            yield


def _itself(saved: Tensor) -> Tensor:
    return saved


def _pack() -> object:
    """The hook that tensors saved for a backward pass go to; one of their own for each block under a checkpoint."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # torch 2.8
    hooks = None if top is None else top(False)
    return None if hooks is None else hooks[0]


def _in_reentrant_checkpoint() -> bool:
    """Whether this is the first run of a block under `torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`."""
    module = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        return False
    forward, frame = module.CheckpointFunction.forward.__code__, sys._getframe(1)
    while frame is not None and frame.f_code is not forward:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
