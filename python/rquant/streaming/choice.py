"""Which tensors of a checkpoint are quantized and how. There is no model to ask: names and shapes must tell.

A weight is a float matrix named `*.weight`. Left float unless `include` or a rule names them: embeddings, which look like
one (`embed_tokens`, `wte`, `word_embeddings`, ...). Left float unless a rule names them: routers (`gate`, `router`), often no
linear layers, and what transformers fuses or renames while it loads a directory (`experts.0.w1`, `embed_out`), for it does
that with float tensors alone. Everything else stays as it is: biases, norms, convolutions, tensors of integers. A language
model's head is quantized where the file has it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..io.safetensors_header import Spec
from ..patterns import matches_name, outward
from ..qtypes import ACTIVATIONS, QType, qtype_of
from ..scheme import OPTIMIZERS, Scheme

FLOATS = ("F32", "F16", "BF16")
_EMBEDDING = re.compile(
    r"(?!embed_out$)(?!.*proj)(embed.*|.*_?(embed|embeds|embedding|embeddings|emb)|wte|wpe|shared|relative_attention_bias)"
)
_ROUTER = re.compile(r"gate|router|shared_expert_gate")
_CONVERTED = re.compile(r"(.*\.)?(experts\.\d+\..*|embed_out)")
_HEADS = ("lm_head", "embed_out")
# model types whose layers are transformers' Conv1D, with weights [in, out]
_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D = re.compile(r"c_attn|c_proj|c_fc|q_attn")


@dataclass(frozen=True)
class Wish:
    """What the user asked for, as in `rquant.quantize`; patterns are globs over module names, or `re:...`.

    `rules`: (pattern, scheme) in order, the first match holds; None leaves float. `transposed`: modules whose weights are
    `[in, out]`, besides those that config.json's model type tells of.
    """

    scheme: Scheme
    activations: QType | str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rules: tuple[tuple[str, Scheme | None], ...] = ()
    transposed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for scheme in (self.scheme, *(scheme for _, scheme in self.rules)):
            if scheme is not None and scheme.optimizer not in OPTIMIZERS:
                names = ", ".join(map(repr, OPTIMIZERS))
                raise ValueError(f"optimizer: expected {names} to stream, got {scheme.optimizer!r}")

    @property
    def activations_name(self) -> str | None:
        """The activations' type by name. Raises ValueError for one that there is not."""
        return (
            None if self.activations is None else qtype_of(self.activations, "activations", ACTIVATIONS).name
        )


@dataclass(frozen=True)
class Choice:
    """How one weight is quantized. `transposed`: stored as `[in, out]`, packed as `[out, in]`."""

    kind: str
    scheme: Scheme
    transposed: bool

    def shape(self, spec: Spec) -> tuple[int, int]:
        """`(n, k)` of the packed weight."""
        n, k = spec.shape
        return (k, n) if self.transposed else (n, k)


def means(pattern: str, name: str) -> bool:
    """Whether a pattern matches this module's name or that of one it is inside of."""
    return any(matches_name(pattern, outer) for outer in outward(name))


def module_of(tensor: str) -> str:
    """The name of the module that owns a tensor."""
    return tensor.rpartition(".")[0]


def choose(
    tensors: Mapping[str, Spec], wish: Wish, config: Mapping[str, Any]
) -> tuple[dict[str, Choice], dict[str, str]]:
    """Choices by tensor, and for every other tensor the reason it stays as it is. `config`: config.json, or empty.

    Raises ValueError for a checkpoint that is quantized already and for a pattern that matches nothing.
    """
    if config.get("quantization_config") or any(name.endswith(".weight_packed") for name in tensors):
        raise ValueError("expected a float checkpoint, got one that is quantized already")
    able = {name: _unable(name, spec) for name, spec in tensors.items()}
    names = {module_of(name) for name in tensors}
    candidates = {module_of(name) for name, reason in able.items() if reason is None}
    absent = absent_heads(tensors, config)
    _match_something("include", wish.include, candidates, "a matrix that can be quantized")
    _match_something("exclude", wish.exclude, names | set(absent), "a module of the checkpoint")
    _match_something(
        "rule", (pattern for pattern, _ in wish.rules), names | set(absent), "a module of the checkpoint"
    )
    _match_something("transposed", wish.transposed, candidates, "a matrix that can be quantized")
    conv1d = config.get("model_type") in _CONV1D_TYPES
    choices, kept = {}, {}
    for name in tensors:
        module = module_of(name)
        last = module.rpartition(".")[2]
        kind = "Embedding" if _EMBEDDING.fullmatch(last) else "Linear"
        rule = next(((p, scheme) for p, scheme in wish.rules if means(p, module)), None)
        converted = bool(config) and _CONVERTED.fullmatch(module) is not None
        reason = able[name] or _refused(module, kind, converted, wish, rule)
        if reason:
            kept[name] = reason
            continue
        transposed = any(means(p, module) for p in wish.transposed)
        transposed = transposed or (conv1d and _CONV1D.fullmatch(last) is not None)
        choices[name] = Choice(kind, wish.scheme if rule is None or rule[1] is None else rule[1], transposed)
    return choices, kept


def absent_heads(tensors: Mapping[str, Spec], config: Mapping[str, Any]) -> list[str]:
    """Names under which a model may tie its head to its embedding, so that the file does not have it."""
    tied = config.get("tie_word_embeddings", bool(config))
    return [head for head in _HEADS if tied and f"{head}.weight" not in tensors]


def _match_something(argument: str, patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    for pattern in patterns:
        try:
            found = any(means(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(
                f"{argument}: expected a regular expression, got {pattern!r} ({error})"
            ) from None
        if not found:
            raise ValueError(
                f"{argument}: expected a pattern over module names, {pattern!r} matches nothing, not {what}"
            )


def _unable(name: str, spec: Spec) -> str | None:
    if not name.endswith(".weight") or len(spec.shape) != 2:
        return "no weight matrix"
    if spec.dtype not in FLOATS:
        return f"expected {', '.join(FLOATS)}; this is {spec.dtype}"
    return None if all(spec.shape) else "no elements"


def _refused(
    module: str, kind: str, converted: bool, wish: Wish, rule: tuple[str, Scheme | None] | None
) -> str | None:
    excluding = next((p for p in wish.exclude if means(p, module)), None)
    if excluding is not None:
        return f"excluded by {excluding!r}"
    if rule is not None and rule[1] is None:
        return f"left float by the rule {rule[0]!r}"
    if converted and rule is None:
        return "fused or renamed by transformers while it loads: by a rule alone"
    if _ROUTER.fullmatch(module.rpartition(".")[2]) and rule is None:
        return "a router by its name: by a rule alone"
    if wish.include:
        return None if any(means(p, module) for p in wish.include) else "not included"
    if kind == "Embedding" and rule is None:
        return "an embedding by its name: by include or a rule"
    return None
