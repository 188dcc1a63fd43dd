"""How one weight is quantized: type, symmetry, granularity, kind of zero point."""

from dataclasses import dataclass
from typing import Any, Literal

from .qtypes import QType, qint2, qint4, qint8, qtype_of

PER_CHANNEL = -1
_DEFAULT_GROUP = {qint8: PER_CHANNEL, qint4: 64, qint2: 32}
ZeroPointDtype = Literal["uint8", "float16"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A complete choice. `group_size` is `PER_CHANNEL` (-1) or the elements that share a scale along the input axis.

    Float16 zero points (HQQ, Q4_1) are read and computed with; quantizing makes integer ones.
    """

    qtype: QType
    symmetric: bool
    group_size: int
    zero_point_dtype: ZeroPointDtype = "uint8"

    @classmethod
    def resolve(
        cls, weights: QType | str, group_size: int | None = None, symmetric: bool | None = None
    ) -> "Scheme":
        """Fill in the type's defaults: qint8 symmetric per channel, qint4 affine group 64, qint2 affine group 32.

        Raises ValueError for a type without integer codes and for a group size that is neither -1 nor >= 1.
        """
        qtype = qtype_of(weights, "weights")
        if group_size is None:
            group_size = _DEFAULT_GROUP[qtype]
        if (
            not isinstance(group_size, int)
            or isinstance(group_size, bool)
            or group_size < -1
            or not group_size
        ):
            raise ValueError(
                f"group_size: expected None, -1 (per channel) or an int >= 1, got {group_size!r}"
            )
        if symmetric not in (None, True, False):
            raise ValueError(f"symmetric: expected None, True or False, got {symmetric!r}")
        return cls(qtype, qtype is qint8 if symmetric is None else bool(symmetric), group_size)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.qtype.bits

    @property
    def per_channel(self) -> bool:
        """Whether a whole row shares one scale, stored in float32."""
        return self.group_size == PER_CHANNEL

    def groups(self, cols: int) -> int:
        """Scales of a row of `cols` elements."""
        return 1 if self.per_channel else -(-cols // self.group_size)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; `from_dict` is the inverse."""
        return {
            "weights": self.qtype.name,
            "symmetric": self.symmetric,
            "group_size": self.group_size,
            "zero_point_dtype": self.zero_point_dtype,
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Scheme":
        """Raises ValueError for a missing or impossible entry."""
        try:
            zeros = config["zero_point_dtype"]
            scheme = cls.resolve(config["weights"], config["group_size"], config["symmetric"])
        except KeyError as missing:
            raise ValueError(f"scheme: expected an entry {missing}, got {sorted(config)}") from None
        if zeros not in ("uint8", "float16"):
            raise ValueError(f"zero_point_dtype: expected 'uint8' or 'float16', got {zeros!r}")
        return cls(scheme.qtype, scheme.symmetric, scheme.group_size, zeros)

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        return f"{self.qtype.name} {kind} {'per channel' if self.per_channel else f'group {self.group_size}'}"


def estimate_size(params: float, bits: int, group_size: int | None = None) -> float:
    """Gigabytes (1e9 bytes) that `params` weights take: `params * bits / 8e9`; 7e9 at 32 bits are 28.0.

    With `group_size`, 3 bytes a group more: a float16 scale and a uint8 zero point.
    """
    overhead = 0.0 if group_size is None else params / group_size * 3
    return (params * bits / 8 + overhead) / 1e9
