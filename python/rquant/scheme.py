"""How one weight is quantized: type, symmetry, granularity, kind of zero point, and who chooses the numbers."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .qtypes import CASTS, WEIGHTS, QType, qfloat8_e4m3fn, qfloat8_e5m2, qint2, qint4, qint8, qtype_of

PER_CHANNEL = -1
_DEFAULT_GROUP = {
    qint8: PER_CHANNEL,
    qint4: 64,
    qint2: 32,
    qfloat8_e4m3fn: PER_CHANNEL,
    qfloat8_e5m2: PER_CHANNEL,
}
ZeroPointDtype = Literal["uint8", "float16"]
OPTIMIZERS: dict[str, ZeroPointDtype] = {
    "minmax": "uint8",
    "absmax": "uint8",
    "mse": "uint8",
    "hqq": "float16",
}
"""The optimizers that have a name, and the zero points that they make."""
HALF_QUADRATIC = 0.7, 10.0, 1.01, 20
"""What "hqq" minimizes and how: norm, beta, kappa, iterations."""

GroupSize = int | tuple[int, int] | None
"""As arguments have it: None is the type's default, -1 a whole row, an int that many elements, (r, c) those of r rows."""

if TYPE_CHECKING:
    from ._native import Array, QMatrix


class Optimizer(Protocol):
    """Chooses scales, zero points and codes. An attribute `zero_point_dtype = "float16"` says that Z is fractional.

    The same weight must always give the same answer: an unfrozen layer asks in each forward, `freeze` once more.
    """

    def __call__(self, weight: "Array", scheme: "Scheme") -> "QMatrix":
        """A tensor `weight`, floats `[n, k]`, contiguous and on the CPU, in canonical form; often `rquant.optimize.encode`'s answer."""


@dataclass(frozen=True)
class Blocks:
    """An optimizer for scales that `rows` rows have in common, as `by` chooses them (see `optimize.blocks`)."""

    rows: int
    by: "str | Optimizer" = "minmax"

    @property
    def zero_point_dtype(self) -> ZeroPointDtype:
        """Those that `by` makes."""
        by = self.by
        return (
            OPTIMIZERS.get(by, "uint8") if isinstance(by, str) else getattr(by, "zero_point_dtype", "uint8")
        )


@dataclass(frozen=True, slots=True)
class Scheme:
    """A complete choice. `group_size` is `PER_CHANNEL` (-1) or the elements that share a scale along the input axis; where
    those of several rows do, `optimizer` is `Blocks`, and each row keeps the scale.

    Float16 zero points (HQQ, Q4_1) promise nothing for 0.0, integer ones bring it back exactly. `optimizer` is a name of
    `OPTIMIZERS` or an object; it matters until the layer is frozen, and says afterwards who made the weight.
    """

    qtype: QType
    symmetric: bool
    group_size: int
    zero_point_dtype: ZeroPointDtype = "uint8"
    optimizer: str | Optimizer = "minmax"

    @classmethod
    def resolve(
        cls,
        weights: QType | str,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        optimizer: str | Optimizer = "minmax",
    ) -> "Scheme":
        """Fill in the type's defaults: qint8 and float8 symmetric per channel, qint4 affine group 64, qint2 affine group 32.
        "float16" and "bfloat16" are casts, without scales.

        `group_size=(r, c)`: blocks of r rows and c columns (-1: all) share a scale.

        Raises ValueError for an unknown type, for a group size that is neither -1 nor >= 1, for float8 with zero points or blocks,
        for an unknown optimizer and for one that moves zero points where there are none or searches integer codes in float8.
        """
        qtype = qtype_of(weights, "weights", (*WEIGHTS, *CASTS))
        if qtype.is_cast and group_size not in (None, PER_CHANNEL):
            raise ValueError(
                f"group_size: expected None for {qtype.name}, which has no scales, got {group_size}"
            )
        if group_size is None:
            group_size = _DEFAULT_GROUP.get(qtype, PER_CHANNEL)
        given: Any = group_size
        rows, size = given if _is_block(given) else (1, given)
        if not _is_int(size) or size < -1 or not size or rows < 1:
            raise ValueError(
                f"group_size: expected None, -1 (per channel), an int >= 1 or a block's (rows, columns), got {group_size!r}"
            )
        if symmetric not in (None, True, False):
            raise ValueError(f"symmetric: expected None, True or False, got {symmetric!r}")
        if qtype.is_floating_point:
            if rows > 1:
                raise ValueError(
                    f"group_size: expected None, -1 or an int for {qtype.name}, got {group_size!r}"
                )
            if symmetric is False:
                raise ValueError(f"symmetric: expected None or True for {qtype.name}, got False")
            if optimizer == "mse":
                raise ValueError(f"optimizer: expected 'minmax' or an object for {qtype.name}, got 'mse'")
        symmetric = qtype is qint8 or qtype.is_floating_point if symmetric is None else bool(symmetric)
        return cls(qtype, symmetric, size, _zeros(optimizer, symmetric), _of_rows(rows, optimizer))

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.qtype.bits

    @property
    def kind(self) -> int:
        """The type's number in the native module and the ops."""
        return self.qtype.kind

    @property
    def per_channel(self) -> bool:
        """Whether a whole row shares one scale, stored in float32."""
        return self.group_size == PER_CHANNEL

    @property
    def block_rows(self) -> int:
        """Rows that have a scale in common: 1 but for blocks."""
        return self.optimizer.rows if isinstance(self.optimizer, Blocks) else 1

    @property
    def _chooser(self) -> str | Optimizer:
        return self.optimizer.by if isinstance(self.optimizer, Blocks) else self.optimizer

    def groups(self, cols: int) -> int:
        """Scales of a row of `cols` elements."""
        return 1 if self.per_channel else -(-cols // self.group_size)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; `from_dict` is the inverse. An optimizer without a name leaves that of its class."""
        rows, optimizer = self.block_rows, self._chooser
        chosen = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
        return {
            "weights": self.qtype.name,
            "symmetric": self.symmetric,
            "group_size": self.group_size,
            "zero_point_dtype": self.zero_point_dtype,
            **({} if rows == 1 else {"block_rows": rows}),
            **({} if chosen == "minmax" else {"optimizer": chosen}),
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Scheme":
        """Raises ValueError for a missing or impossible entry. An unknown optimizer is one only once it is to act."""
        try:
            zeros = config["zero_point_dtype"]
            scheme = cls.resolve(config["weights"], config["group_size"], config["symmetric"])
        except KeyError as missing:
            raise ValueError(f"scheme: expected an entry {missing}, got {sorted(config)}") from None
        if zeros not in ("uint8", "float16"):
            raise ValueError(f"zero_point_dtype: expected 'uint8' or 'float16', got {zeros!r}")
        optimizer, rows = config.get("optimizer", "minmax"), config.get("block_rows", 1)
        if not _is_int(rows) or rows < 1:
            raise ValueError(f"block_rows: expected an int >= 1, got {rows!r}")
        return replace(scheme, zero_point_dtype=zeros, optimizer=_of_rows(rows, optimizer))

    def __str__(self) -> str:
        if self.qtype.is_cast:
            return self.qtype.name
        kind = "" if self.qtype.is_floating_point else " symmetric" if self.symmetric else " affine"
        size = "per channel" if self.per_channel else f"group {self.group_size}"
        if self.block_rows > 1:
            size = f"block {self.block_rows} x {'all' if self.per_channel else self.group_size}"
        by = "" if self._chooser == "minmax" else f" {self.to_dict()['optimizer']}"
        return f"{self.qtype.name}{kind} {size}{by}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _of_rows(rows: int, optimizer: str | Optimizer) -> str | Optimizer:
    return optimizer if rows == 1 else Blocks(rows, optimizer)  # type: ignore[return-value]


def _is_block(group_size: Any) -> bool:
    return isinstance(group_size, tuple | list) and len(group_size) == 2 and all(map(_is_int, group_size))


def _zeros(optimizer: str | Optimizer, symmetric: bool) -> ZeroPointDtype:
    """The zero points that the optimizer makes."""
    if isinstance(optimizer, str):
        zeros = OPTIMIZERS.get(optimizer)
    else:
        zeros = getattr(optimizer, "zero_point_dtype", "uint8") if callable(optimizer) else None
    if zeros not in ("uint8", "float16"):
        names = ", ".join(map(repr, OPTIMIZERS))
        raise ValueError(f"optimizer: expected {names} or an object like them, got {optimizer!r}")
    if zeros == "float16" and symmetric:
        raise ValueError(
            f"optimizer: expected symmetric=False for {optimizer!r}, which moves zero points, got a symmetric scheme"
        )
    return zeros


def estimate_size(params: float, bits: int, group_size: int | None = None) -> float:
    """Gigabytes (1e9 bytes) that `params` weights take: `params * bits / 8e9`; 7e9 at 32 bits are 28.0.

    With `group_size`, 3 bytes a group more: a float16 scale and a uint8 zero point.
    """
    overhead = 0.0 if group_size is None else params / group_size * 3
    return (params * bits / 8 + overhead) / 1e9
