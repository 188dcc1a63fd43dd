"""Attributes that are part of where training is: a state dict has them beside the tensors."""

from typing import Any, ClassVar

import torch
from torch import nn


class Flags(nn.Module):
    """Whose bool attributes `FLAGS` are in the state dict, as bool tensors; without them, as in older ones, they stay."""

    FLAGS: ClassVar[tuple[str, ...]] = ("frozen",)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.FLAGS:
            destination[prefix + name] = torch.tensor(getattr(self, name))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        unexpected: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected, error_msgs
        )
        given = {prefix + name: name for name in self.FLAGS if prefix + name in state_dict}
        unexpected_keys += [key for key in unexpected if key not in given]
        for key, name in given.items():
            setattr(self, name, bool(state_dict[key]))
