"""What `rquant.quantize` did: which modules became integers, which stayed float and why, and the bytes of both."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from .nn import PackedWeight, Unpacked
from .nn.registry import registration_of
from .rules import describe_scheme
from .scheme import Scheme
from .selection import Target, Tree


@dataclass(frozen=True, slots=True)
class Row:
    """One module's own parameters. `scheme` is None for what stayed float; `note` says why, or what is special.

    `bytes_float` are those of `bytes_after` that are floats by choice: not scales, but biases and what has no scheme.
    """

    name: str
    type: str
    scheme: str | None
    note: str
    params: int
    bytes_before: int
    bytes_after: int
    bytes_float: int


@dataclass(frozen=True)
class Report:
    """`str()` is a table, in which rows that differ only in numbers of their names are one; `to_dict()` has them all."""

    rows: list[Row]

    @property
    def quantized(self) -> list[Row]:
        """Modules with an integer weight."""
        return [row for row in self.rows if row.scheme is not None]

    @property
    def floating(self) -> list[Row]:
        """Modules that stayed as they were."""
        return [row for row in self.rows if row.scheme is None]

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters before; tied ones count once."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes once frozen, in canonical form: codes, scales, zero points and what stayed float."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def bytes_float(self) -> int:
        """Bytes of the parameters that stay float."""
        return sum(row.bytes_float for row in self.rows)

    @property
    def float_because(self) -> dict[str, int]:
        """Reason -> bytes that stay float for it, most first."""
        found: dict[str, int] = {}
        first: dict[str, str] = {}  # reasons that differ only in numbers count as the first of them
        for row in self.rows:
            if row.bytes_float:
                reason = row.note if row.scheme is None else "biases of quantized layers"
                reason = first.setdefault(_numberless(reason), reason)
                found[reason] = found.get(reason, 0) + row.bytes_float
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bytes_float": self.bytes_float,
            "float_because": self.float_because,
        }

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        merged: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            # notes name other modules (ties) and may hold numbers too
            key = (_numberless(row.name), row.type, row.params, row.scheme, _numberless(row.note))
            merged.setdefault(key, []).append(row)
        table = [("module", "type", "stored as", "bytes before", "after", "")]
        for (name, type_, _, scheme, _), rows in merged.items():
            count = f" x{len(rows)}" if len(rows) > 1 else ""
            before, after = sum(row.bytes_before for row in rows), sum(row.bytes_after for row in rows)
            shown = name + count if count else rows[0].name
            table.append(
                (shown or "(model)", type_, scheme or "float", f"{before:,}", f"{after:,}", rows[0].note)
            )
        before, after = self.bytes_before, self.bytes_after
        table.append(("all", "", "", f"{before:,}", f"{after:,}", f"{before / max(after, 1):.2f}x smaller"))
        width = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = []
        for line in table:
            cells = (
                c.rjust(w) if i in (3, 4) else c.ljust(w)
                for i, (c, w) in enumerate(zip(line, width, strict=True))
            )
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines + self._float_lines())

    def _float_lines(self) -> list[str]:
        def percent(part: int) -> str:
            return f"{100 * part / max(before, 1):.1f} %"

        before, because = self.bytes_before, self.float_because
        lines = [f"{percent(self.bytes_float)} of the bytes before stay float:"] if because else []
        return lines + [f"{percent(part):>8}  {reason}" for reason, part in because.items()]


def _numberless(text: str) -> str:
    return re.sub(r"\d+", "*", text)


def _stored_bytes(shape: tuple[int, ...], scheme: Scheme, wide: bool) -> int:
    n, k = shape
    if scheme.qtype.is_cast:
        return 2 * n * k
    a_scale = 4 if scheme.per_channel or wide else 2
    a_zero = 0 if scheme.symmetric else 1 if scheme.zero_point_dtype == "uint8" else 2
    return n * (-(-k * scheme.bits // 32) * 4 + scheme.groups(k) * (a_scale + a_zero))


def rows_of(tree: Tree, targets: list[Target], wide: list[bool], kept: dict[str, str]) -> list[Row]:
    """One row a module that owns parameters; what is shared counts where it comes first.

    `wide[i]`: target i needs float32 scales. `kept`: reasons of what stays float. Nothing is quantized yet.
    """
    chosen = {name: (target, w) for target, w in zip(targets, wide, strict=True) for name, _ in target.users}
    seen: set[int] = set()
    rows = []
    first: dict[int, str] = {}
    for name, module in tree.modules.items():
        if first.setdefault(id(module), name) != name:
            continue
        own = {key: p for key, p in module._parameters.items() if p is not None}
        new = {key: p for key, p in own.items() if id(p) not in seen}
        seen.update(id(p) for p in own.values())
        before = after = floats = sum(p.nbytes for p in new.values())
        if isinstance(module, PackedWeight):
            before = after = before + (module.frozen and module.canonical_like().nbytes)
        if not own and not isinstance(module, PackedWeight):
            continue
        notes, stored = [], None
        if isinstance(module, Unpacked) or (
            name in chosen and issubclass(registration_of(module).quantized, Unpacked)  # type: ignore[union-attr]
        ):
            notes.append("float parameters; int8 for the layer after it, once calibrated")
        elif name in chosen:
            target, is_wide = chosen[name]
            stored = str(target.choice)
            if "weight" in new:
                like = new["weight"].detach().to("meta")
                shape = registration_of(module).quantized.matrix_of(module, like).shape  # type: ignore[union-attr]
                floats -= new["weight"].nbytes
                after = floats + _stored_bytes(shape, target.choice.scheme, is_wide)
            if is_wide:
                notes.append("float32 scales: some are outside float16's normal range")
            notes += [f"tied to {other}" for other, _ in target.users[:1] if other != name]
        elif isinstance(module, PackedWeight):
            stored = describe_scheme(module.scheme, module.options())
            floats -= new["weight"].nbytes if "weight" in new else 0
            notes.append("quantized before")
        else:
            notes.append(kept.get(name, "no quantized form"))
        params = sum(p.numel() for p in new.values())
        rows.append(Row(name, type(module).__name__, stored, "; ".join(notes), params, before, after, floats))
    return rows
