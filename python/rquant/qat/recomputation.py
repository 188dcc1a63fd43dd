"""Blocks under `torch.utils.checkpoint` run again in the backward pass: what follows batches must not follow one twice."""

import torch


def recomputing() -> bool:
    """Whether a backward pass is under way: what runs now ran before, and has to compute the same."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
