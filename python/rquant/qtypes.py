"""The storage types of weights and activations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QType:
    """What one element is stored as. Integer codes q lie in `[qmin, qmax]`; symmetric quantization leaves qmin out.

    `kind` is its number in the native module and the ops: the bits of an integer, 43 for e4m3fn, 52 for e5m2 (and for the
    casts, which need no kernels, 510 for float16 and 87 for bfloat16: exponent and mantissa). `largest` is
    the largest value of a code, which the largest magnitude of a symmetric group becomes.
    """

    name: str
    bits: int
    kind: int
    largest: float
    is_floating_point: bool = False

    @property
    def qmin(self) -> int:
        """The lowest code, -2**(bits - 1)."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The highest code, 2**(bits - 1) - 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def is_cast(self) -> bool:
        """Whether a weight is stored as plain floats of half the width, without scales."""
        return self.bits == 16

    def __repr__(self) -> str:
        return f"rquant.{self.name}"


qint2 = QType("qint2", 2, 2, 1.0)
qint4 = QType("qint4", 4, 4, 7.0)
qint8 = QType("qint8", 8, 8, 127.0)
qfloat8_e4m3fn = QType("qfloat8_e4m3fn", 8, 43, 448.0, is_floating_point=True)
qfloat8_e5m2 = QType("qfloat8_e5m2", 8, 52, 57344.0, is_floating_point=True)
qfloat8 = qfloat8_e4m3fn
qfloat16 = QType("qfloat16", 16, 510, 65504.0, is_floating_point=True)
qbfloat16 = QType("qbfloat16", 16, 87, 3.3895313892515355e38, is_floating_point=True)

INTEGERS = (qint2, qint4, qint8)
FLOATS = (qfloat8_e4m3fn, qfloat8_e5m2)
WEIGHTS = (*INTEGERS, *FLOATS)
CASTS = (qfloat16, qbfloat16)
ACTIVATIONS = (qint8, *FLOATS)
_BY_NAME = {t.name: t for t in (*WEIGHTS, *CASTS)} | {"qfloat8": qfloat8}
_BY_KIND = {t.kind: t for t in (*WEIGHTS, *CASTS)}


def qtype_of_kind(kind: int) -> QType:
    """The type of this `kind`."""
    return _BY_KIND[kind]


def qtype_of(value: QType | str, argument: str, supported: tuple[QType, ...] = WEIGHTS) -> QType:
    """A type given as the object or by name, `"int4"` or `"qint4"`.

    Raises ValueError for an unknown name, and for a type that `argument` does not take.
    """
    found = value
    if isinstance(value, str):
        found = _BY_NAME.get(value if value.startswith("q") else f"q{value}", value)
    if found not in supported:
        names = ", ".join(t.name for t in supported)
        raise ValueError(f"{argument}: expected one of {names}, got {value!r}")
    return found
