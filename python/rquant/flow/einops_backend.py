"""einops takes activations: `rearrange` of codes moves codes.

einops looks a tensor's type up among the subclasses of its backends, `Activation` is none that it knows.
"""

import sys
from typing import Any

from .._import_hook import after_import
from .activation import Activation

_backends: list[type] = []  # einops finds subclasses that somebody holds


def _register() -> None:
    torchs: Any = getattr(sys.modules["einops._backends"], "TorchBackend", None)
    if torchs is None or _backends:
        return

    class ActivationBackend(torchs):  # type: ignore[misc]
        """What einops does to a tensor, by the methods that an activation has too."""

        framework_name = "rquant"

        def is_appropriate_type(self, tensor: Any) -> bool:
            """Whether it is one."""
            return type(tensor) is Activation

    _backends.append(ActivationBackend)


after_import("einops._backends", _register)
