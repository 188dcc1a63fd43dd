"""transformers (4.57 and newer): `from_pretrained` quantizes while it loads, `save_pretrained` and reload.

Importing this registers the quantization method `rquant`; `import rquant` does so as soon as transformers is there.
"""

try:
    from transformers.quantizers import auto
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
except ImportError as error:
    raise ImportError(
        f"rquant.RQuantConfig needs transformers >= 4.57: pip install 'transformers>=4.57' ({error})"
    ) from None

from .config import METHOD, RQuantConfig
from .quantizer import RQuantHfQuantizer, attach

if METHOD not in auto.AUTO_QUANTIZER_MAPPING:  # both raise the second time, as after a reload of this module
    register_quantization_config(METHOD)(RQuantConfig)
    register_quantizer(METHOD)(RQuantHfQuantizer)

__all__ = ["RQuantConfig", "RQuantHfQuantizer", "attach"]
