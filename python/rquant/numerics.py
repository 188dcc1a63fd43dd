"""How a number is stored: its bits, field by field, in any integer or float format. For learning; needs no torch.

An integer is two's complement: the highest bit counts `-2**(bits - 1)`.

>>> describe(19, "int8").bits
'00010011'
>>> describe(-19, "int8").bits  # 00010011 inverted is 11101100, and 1 more
'11101101'

A float is `(-1)**sign * 2**(exponent - bias) * 1.mantissa` (IEEE 754-2019, 3.4); the leading one is not stored, so a
mantissa of 10 bits makes a significand of 11.

>>> for name in ("float16", "bfloat16", "float32", "float64"):
...     f = layout(name)
...     print(f"{name}: exponent {f.exponent_bits}, significand {f.significand_bits} ({f.mantissa_bits} stored)")
float16: exponent 5, significand 11 (10 stored)
bfloat16: exponent 8, significand 8 (7 stored)
float32: exponent 8, significand 24 (23 stored)
float64: exponent 11, significand 53 (52 stored)

>>> print(describe(0.1, "float16"))
0.1 as float16
bits   0 01011 1001100110 (1 sign, 5 exponent, 10 mantissa)
value  (-1)^0 x 2^(11 - 15) x 1.599609375 = 0.0999755859375
error  -2.44e-05; neighbours are 6.1e-05 apart
range  +-65504; smallest normal 6.1e-05, smallest 5.96e-08
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_ALIASES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
_ALIASES |= {"fp64": "float64", "double": "float64", "float8": "float8_e4m3fn"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Fields of a format, in bits. An integer has `exponent_bits` 0; `mantissa_bits` are then its bits but for the sign."""

    name: str
    sign_bits: int
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True

    @property
    def bits(self) -> int:
        """All of them."""
        return self.sign_bits + self.exponent_bits + self.mantissa_bits

    @property
    def is_float(self) -> bool:
        """Whether there is an exponent."""
        return self.exponent_bits > 0

    @property
    def significand_bits(self) -> int:
        """Digits of precision: of a float one more than is stored, the leading one."""
        return self.mantissa_bits + self.is_float

    @property
    def bias(self) -> int:
        """What is taken from the stored exponent: `2**(exponent_bits - 1) - 1`."""
        return (1 << (self.exponent_bits - 1)) - 1 if self.is_float else 0

    @property
    def max(self) -> float | int:
        """The largest finite value."""
        if not self.is_float:
            return (1 << self.mantissa_bits) - 1
        return float(self._value(self._largest_code))

    @property
    def min(self) -> float | int:
        """The lowest value."""
        if not self.is_float:
            return -(1 << self.mantissa_bits) if self.sign_bits else 0
        return -self.max

    @property
    def smallest_normal(self) -> float:
        """The smallest positive value with full precision (floats)."""
        return float(self._value(1 << self.mantissa_bits))

    @property
    def smallest(self) -> float:
        """The smallest positive value (floats: subnormal)."""
        return float(self._value(1)) if self.is_float else 1

    @property
    def _largest_code(self) -> int:
        # e4m3fn gives up infinity, and of its highest exponent only the last code, NaN
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        return top - (1 << self.mantissa_bits) if self.has_infinity else top - 1

    def _value(self, code: int) -> Fraction:
        """What the code of a finite, non-negative float stands for, exactly."""
        exponent, mantissa = divmod(code, 1 << self.mantissa_bits)
        if exponent:
            mantissa += 1 << self.mantissa_bits
        return mantissa * Fraction(2) ** (max(exponent, 1) - self.bias - self.mantissa_bits)

    def _nearest(self, x: float) -> tuple[int, int]:
        """(sign, code) of the nearest float; ties go to the even code. Beyond the largest: infinity, or NaN if there is none."""
        sign = int(math.copysign(1.0, x) < 0) if isinstance(x, float) else int(x < 0)
        beyond = self._largest_code + 1
        if x != x:
            return sign, beyond + (1 << (self.mantissa_bits - 1)) if self.has_infinity else beyond
        if math.isinf(x):
            return sign, beyond
        size = abs(Fraction(x))
        lowest = 1 - self.bias
        exponent = max(_floor_log2(size), lowest) if size else lowest
        steps = round(size / Fraction(2) ** (exponent - self.mantissa_bits))
        return sign, min(((exponent - lowest) << self.mantissa_bits) + steps, beyond)


def _floor_log2(x: Fraction) -> int:
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


_FLOATS = {
    layout.name: layout
    for layout in (
        Layout("float8_e4m3fn", 1, 4, 3, has_infinity=False),
        Layout("float8_e5m2", 1, 5, 2),
        Layout("float16", 1, 5, 10),
        Layout("bfloat16", 1, 8, 7),
        Layout("float32", 1, 8, 23),
        Layout("float64", 1, 11, 52),
    )
}
_INTS = {f"{'u' * (not sign)}int{bits}": (sign, bits) for bits in (2, 4, 8, 16, 32, 64) for sign in (1, 0)}


def layout(dtype: Any) -> Layout:
    """The fields of a format: a name ("int8", "fp16"), a dtype of torch or numpy, or a type of rquant.

    Raises ValueError for what is none.
    """
    name = str(getattr(dtype, "name", dtype))  # torch's dtypes have no name of their own
    name = name.removeprefix("torch.").removeprefix("q")
    name = _ALIASES.get(name, name)
    if name in _FLOATS:
        return _FLOATS[name]
    if name in _INTS:
        sign, bits = _INTS[name]
        return Layout(name, sign, 0, bits - sign)
    raise ValueError(f"dtype: expected one of {', '.join([*_INTS, *_FLOATS])}, got {dtype!r}")


@dataclass(frozen=True, slots=True)
class Description:
    """`x` as `layout` stores it. `value` is what is stored, `error` that less x, `spacing` the distance to the next value."""

    x: float | int
    layout: Layout
    fields: tuple[str, ...]
    value: float | int
    spacing: float

    @property
    def bits(self) -> str:
        """All bits, the highest first."""
        return "".join(self.fields)

    @property
    def error(self) -> float:
        """What storing costs."""
        return float(self.value - self.x)

    def __str__(self) -> str:
        f = self.layout
        head = f"{self.x!r} as {f.name}"
        if not f.is_float:
            return f"{head}\nbits   {self.bits} ({self._sum()})\nrange  {f.min} .. {f.max}"
        sizes = f"(1 sign, {f.exponent_bits} exponent, {f.mantissa_bits} mantissa)"
        lines = [head, f"bits   {' '.join(self.fields)} {sizes}", f"value  {self._formula()}"]
        if math.isfinite(self.value):
            lines.append(f"error  {self.error:.3g}; neighbours are {self.spacing:.3g} apart")
        lines.append(
            f"range  +-{f.max:.6g}; smallest normal {f.smallest_normal:.3g}, smallest {f.smallest:.3g}"
        )
        return "\n".join(lines)

    def _sum(self) -> str:
        places = [(1 << i) for i, bit in enumerate(reversed(self.bits)) if bit == "1"]
        if self.layout.sign_bits and self.bits[0] == "1":
            places[-1] = -places[-1]
        return f"{' + '.join(map(str, reversed(places))) or '0'} = {self.value}"

    def _formula(self) -> str:
        if not math.isfinite(self.value):
            return (
                "infinity: every exponent bit, no mantissa bit" if math.isinf(self.value) else "not a number"
            )
        f, (sign, exponent, mantissa) = self.layout, self.fields
        stored, fraction = int(exponent, 2), Fraction(int(mantissa, 2), 1 << f.mantissa_bits)
        power = f"{stored} - {f.bias}" if stored else f"1 - {f.bias}"  # subnormal: no leading one
        return f"(-1)^{sign} x 2^({power}) x {float(fraction + (stored > 0))!r} = {self.value!r}"


def describe(x: Any, dtype: Any) -> Description:
    """How `x` is stored in `dtype`; `print` it for all that is to be said.

    An integer format takes whole numbers in its range; ValueError for others: 127 + 127 is not an int8. A float format
    rounds to the nearest, ties to even; beyond its largest value lies infinity (float8_e4m3fn has none: NaN, where a
    conversion that saturates, as torch's does in newer versions, gives 448).

    >>> print(describe(-19, "int8"))
    -19 as int8
    bits   11101101 (-128 + 64 + 32 + 8 + 4 + 1 = -19)
    range  -128 .. 127
    >>> describe(1e5, "float16").value, describe(1e5, "bfloat16").value
    (inf, 99840.0)
    >>> describe(254, "int8")
    Traceback (most recent call last):
    ...
    ValueError: x: expected a whole number from -128 to 127 for int8, got 254
    """
    f = layout(dtype)
    if not isinstance(x, int | float):
        try:
            x = x.item()  # a scalar of torch or numpy
        except (AttributeError, RuntimeError, ValueError):
            raise ValueError(f"x: expected one number, got {x!r}") from None
    if not f.is_float:
        if x != x or math.isinf(x) or x != int(x) or not f.min <= x <= f.max:
            raise ValueError(f"x: expected a whole number from {f.min} to {f.max} for {f.name}, got {x!r}")
        value = int(x)
        return Description(x, f, (format(value % (1 << f.bits), f"0{f.bits}b"),), value, 1)
    sign, code = f._nearest(x)
    digits = f"{sign}{code:0{f.bits - 1}b}"
    fields = digits[0], digits[1 : 1 + f.exponent_bits], digits[1 + f.exponent_bits :]
    if code > f._largest_code:
        infinite = f.has_infinity and code == f._largest_code + 1
        return Description(x, f, fields, math.copysign(math.inf, x) if infinite else math.nan, math.nan)
    size = f._value(code)
    spacing = f._value(code + 1) - size if code < f._largest_code else size - f._value(code - 1)
    return Description(x, f, fields, math.copysign(float(size), -sign or 1), float(spacing))
