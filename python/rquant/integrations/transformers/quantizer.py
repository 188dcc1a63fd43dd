"""`RQuantHfQuantizer`: the hooks that transformers calls around loading and saving, of 5.x and of 4.57 alike."""

import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging

from ...model import freeze
from ...nn import PackedWeight, storage
from ...nn.placing import place
from ...serialize.modelmap import join
from . import layers, skeleton, unclaimed
from .config import METHOD, RQuantConfig
from .containers import Pending
from .restore import dequantize_layers, keep_packed_names

logger = logging.get_logger("transformers.rquant")  # shows what transformers' own verbosity shows


class RQuantHfQuantizer(HfQuantizer):
    """Quantizes each weight as it is read, or restores packed ones. `report` tells what was quantized on load."""

    requires_calibration = False
    requires_parameters_quantization = True  # 4.57: it calls `create_quantized_param`
    is_trainable = True  # adapters: gradients reach the input through packed layers
    is_qat_trainable = False
    is_compileable = True
    quantization_config: RQuantConfig
    report: Any = None

    def __init__(self, quantization_config: RQuantConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._transposed: set[str] = set()
        self._pending: dict[str, Pending] = {}
        self._missing: set[str] = set()
        self._unexpected: set[str] = set()
        self._dtype = torch.float32
        self._dtypes: dict[str, torch.dtype] = {}
        self._first_error: ValueError | None = None

    # -- before the tensors are read

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Raises ValueError for a device map that leaves modules on disk, or on CPU beside an accelerator."""
        places = {str(place) for place in device_map.values()} if isinstance(device_map, dict) else set()
        if "disk" in places or ("cpu" in places and len(places) > 1):
            raise ValueError(
                f"device_map: expected one device, or accelerators only, got {sorted(places)}: offloaded modules would "
                "need their packed weights moved in every forward"
            )

    @property
    def quantized_element_size(self) -> float:
        """Bytes of one quantized weight, from which transformers guesses what fits where."""
        return self.quantization_config.bits / 8

    def adjust_target_dtype(self, dtype: torch.dtype) -> Any:
        """4.57's form of `quantized_element_size`."""
        from accelerate.utils import CustomDtype

        sizes = {8: torch.int8, 4: CustomDtype.INT4, 2: CustomDtype.INT2}
        return sizes.get(self.quantization_config.bits, dtype)

    def _convert_model_for_quantization(self, model: nn.Module) -> None:
        """Nothing: of the modules that transformers replaces for other methods rquant needs none."""

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self._transposed = skeleton.conv1d_names(model)
        if self.pre_quantized:
            tensors = [*model.named_parameters(), *model.named_buffers()]
            self._dtype = next(
                (t.dtype for _, t in tensors if t.is_floating_point()), torch.get_default_dtype()
            )
            self._dtypes = {
                name: torch.float32 if skeleton.keeps_float32(model, name, t.dtype) else t.dtype
                for name, t in tensors
                if t.is_floating_point()
            }
            skeleton.rebuild_skeleton(model, self.quantization_config, self._dtype)
            self._set_ties_aside(model)
            if hasattr(HfQuantizer, "get_quantize_ops"):
                unclaimed.watch(model, self._unexpected.update)
        else:
            self.report, self._pending = skeleton.quantize_skeleton(model, self.quantization_config)
        return model

    def _set_ties_aside(self, model: nn.Module) -> None:
        """Keep transformers from tying packed layers while not all of them hold something."""
        ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        packed = skeleton.packed_layers(model)
        self._ties = {t: s for t, s in ties.items() if t.removesuffix(".weight") in packed}
        for target in self._ties:
            del ties[target]

    # -- while they are read

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether the tensor of this name is ours to place: a float weight to quantize, or part of a packed one."""
        path, _, name = param_name.rpartition(".")
        module = model.get_submodule(path)
        if path in self._pending:
            return name in module._parameters
        if not isinstance(module, PackedWeight):
            return False
        return name in storage.CANONICAL if module.frozen else name == "weight" and not self.pre_quantized

    def get_quantize_ops(self) -> Any:
        """5.x: the operation that `quantize_into` is called from."""
        from .operation import QuantizeOnLoad

        return QuantizeOnLoad(self)

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """5.x: what a saved tensor is cast to; packed ones to nothing, or scales would be rounded."""
        if converter.target_patterns[0].rpartition(".")[2] in storage.CANONICAL:
            return None
        return super().get_new_dtype(converter, param, dtype)

    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: Any, **kwargs: Any
    ) -> None:
        """4.57: place one tensor for which `param_needs_quantization`."""
        path, _, name = param_name.rpartition(".")
        layer, value = model.get_submodule(path), param_value.to(target_device)
        if name in storage.CANONICAL:
            value._is_hf_initialized = param_name not in self._missing  # type: ignore[attr-defined]
            layer._buffers[name] = value
        elif param_name in self._missing:  # comes without values, which transformers makes next
            layer._parameters[name] = nn.Parameter(value)
        else:
            self.quantize_into(model, path, name, value)

    def quantize_into(self, model: nn.Module, path: str, name: str, value: Tensor) -> None:
        """Pack the float parameter `name` of the module at `path`, which may be dropped then.

        A bad weight is told once all is read, when no loader is between the error and the user.
        """
        try:
            if path in self._pending:
                self._pending[path].take(name, value)
            else:
                layer: Any = model.get_submodule(path)
                layers.take_weight(layer, value, path in self._transposed)
        except ValueError as error:
            self._first_error = self._first_error or ValueError(f"{path}.{error}")

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """4.57: what the checkpoint lacks is told here, before anything is read; further names of a tied weight it may."""
        self._missing = set(missing_keys) - self._repeated_keys()
        return sorted(self._missing)

    def update_unexpected_keys(self, model: nn.Module, unexpected_keys: list[str]) -> list[str]:
        """4.57: what the model has no place for."""
        self._unexpected.update(unexpected_keys)
        return unexpected_keys

    def update_expected_keys(
        self, model: nn.Module, expected_keys: list[str], loaded_keys: list[str]
    ) -> list[str]:
        """4.57 casts every float tensor of the file to this dtype, scales too; the others are cast afterwards."""
        if self.pre_quantized:
            model.config._pre_quantization_dtype = None  # type: ignore[union-attr]
        return expected_keys

    # -- afterwards

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self._first_error is not None:
            raise self._first_error
        self.validate_environment(device_map=getattr(model, "hf_device_map", None))
        for name, pending in self._pending.items():
            if not pending.done:  # it has children, or parameters that the checkpoint lacked
                try:
                    pending.fill()
                except ValueError as error:
                    raise ValueError(f"{name}.{error}") from None
            place(model, name, pending.container)
        found = skeleton.packed_layers(model)
        if self.pre_quantized:
            self._refuse_missing(found)
            unclaimed.refuse(model, self._unexpected)
            for name, layer in found.items():
                if layer.held:
                    layers.pack(name, layer)
            self._cast_floats(model)
            for target, source in self._ties.items():
                model.all_tied_weights_keys[target] = source  # type: ignore[union-attr, index]
            self._tie(found)
        else:
            freeze(model)  # what the checkpoint lacked, and transformers initialized
            for layer in found.values():
                layers.unshield(layer)
            self._warn_of_floats()
        attach(model, self)
        return model

    def _refuse_missing(self, found: dict[str, PackedWeight]) -> None:
        for name, layer in found.items():
            tensors = {
                **layer.held,
                "bias": layer._parameters.get("bias"),
                "outlier_weight": layer._buffers.get("outlier_weight"),
            }
            for part, tensor in tensors.items():
                full = join(name, part)
                packed = part in storage.CANONICAL
                if tensor is None or not (packed or hasattr(HfQuantizer, "get_quantize_ops")):
                    lost = full in self._missing
                else:
                    lost = not getattr(tensor, "_is_hf_initialized", False)
                if lost:
                    raise ValueError(f"{full}: missing from the checkpoint")

    def _cast_floats(self, model: nn.Module) -> None:
        """4.57: to the dtype that was asked for (5.x has done so)."""
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in self._dtypes and tensor.dtype != self._dtypes[name]:
                tensor.data = tensor.data.to(self._dtypes[name])
        if getattr(model.config, "_pre_quantization_dtype", self._dtype) is None:
            model.config._pre_quantization_dtype = self._dtype  # type: ignore[union-attr]

    def _tie(self, found: dict[str, PackedWeight]) -> None:
        for names in self.quantization_config.ties or ():
            tied = [found[n] for full in names if (n := full[: -len(".weight")]) in found]
            for layer in tied[1:]:
                layer.hold(tied[0].held, like=tied[0].compute_like)

    def _warn_of_floats(self) -> None:
        """Say what takes most of the memory still."""
        large = [row for row in self.report.floating if row.bytes_after > self.report.bytes_after / 20]
        if large:
            lines = [f"  {row.name} ({row.type}): {row.bytes_after:,} bytes, {row.note}" for row in large]
            logger.warning("rquant left these modules in float:\n%s", "\n".join(lines))

    # -- saving and going back

    def is_serializable(self, safe_serialization: Any = None) -> bool:
        """Always: the state is plain tensors."""
        return True

    def get_state_dict_and_metadata(
        self, model: nn.Module, *args: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state dict with every tied weight once, after writing into the configuration what the layers are.

        Raises ValueError for a layer that is not frozen.
        """
        for name, layer in skeleton.packed_layers(model).items():
            if not layer.frozen:
                raise ValueError(f"{name}: expected a frozen layer; call rquant.freeze(model) before saving")
        config = self.quantization_config
        config.layers, config.ties = skeleton.describe_layers(model)
        repeated = self._repeated_keys()
        state = {key: tensor for key, tensor in model.state_dict().items() if key not in repeated}
        keep_packed_names(model, state)
        return state, {}

    def _repeated_keys(self) -> set[str]:
        """Names of packed tensors that are stored under another name, that of the first layer tied to theirs."""
        ties = self.quantization_config.ties or ()
        layers = [full[: -len("weight")] for names in ties for full in names[1:]]
        return {layer + part for layer in layers for part in storage.CANONICAL}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        dequantize_layers(model, self._transposed, dtype)
        del model.num_parameters
        return model


def attach(model: nn.Module, quantizer: RQuantHfQuantizer | None = None) -> nn.Module:
    """Have a transformers model that `rquant.quantize` changed in memory saved by its own `save_pretrained`; returns it."""
    quantizer = quantizer or RQuantHfQuantizer(RQuantConfig(), pre_quantized=True)
    model.hf_quantizer = quantizer  # type: ignore[assignment]
    model.is_quantized = True  # type: ignore[assignment]
    model.quantization_method = METHOD  # type: ignore[assignment]
    model.config.quantization_config = quantizer.quantization_config  # type: ignore[union-attr]
    model.num_parameters = types.MethodType(_num_parameters, model)  # type: ignore[assignment]
    return model


def _num_parameters(model: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """As transformers', with packed weights counted by their elements, tied ones once."""
    packed = {
        id(next(iter(layer.held.values()))): layer.weight_shape[0] * layer.weight_shape[1]
        for layer in skeleton.packed_layers(model).values()
        if not only_trainable
        and layer.frozen
        and not (exclude_embeddings and isinstance(layer, nn.Embedding))
    }
    return type(model).num_parameters(model, only_trainable, exclude_embeddings) + sum(packed.values())
