"""`rquant inspect PATH`: what a checkpoint holds, without reading its tensors."""

import argparse
import json
import re
from typing import Any

from ..io.contents import Contents, PackedLayer, read_contents
from ..io.safetensors_header import ITEMSIZE, Spec
from ..table import text_table


def add_parser(subparsers: Any) -> None:
    """Declare the arguments."""
    text = "layers, schemes, bits and bytes of a file or directory"
    parser = subparsers.add_parser("inspect", help=text, description=f"Print {text}; only headers are read.")
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, or a directory that holds them")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, a layer an entry, instead of a table"
    )
    parser.add_argument(
        "--all", action="store_true", help="a row for each layer, also where only numbers in names differ"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table or the JSON."""
    contents = read_contents(args.path)
    print(json.dumps(_to_dict(contents), indent=2) if args.json else _to_text(contents, args.all))
    return 0


def _totals(contents: Contents) -> dict[str, Any]:
    weights = sum(layer.rows * layer.cols for layer in contents.layers)
    return {
        "packed_layers": len(contents.layers),
        "packed_weights": weights,
        "packed_bytes": contents.packed_bytes,
        "packed_bits_per_weight": round(contents.packed_bytes * 8 / weights, 4) if weights else None,
        "other_tensors": len(contents.rest),
        "other_bytes": contents.rest_bytes,
        "bytes": contents.packed_bytes + contents.rest_bytes,
    }


def _to_dict(contents: Contents) -> dict[str, Any]:
    return {
        "path": str(contents.checkpoint.path),
        "files": [file.name for file in contents.checkpoint.headers],
        "layers": [
            {
                "name": layer.name,
                "shape": [layer.rows, layer.cols],
                **layer.scheme.to_dict(),
                "activations": layer.activations,
                "bits_per_weight": round(layer.bits, 4),
                "bytes": layer.nbytes,
                "file": layer.file,
            }
            for layer in contents.layers
        ],
        "other": [
            {"name": name, "dtype": spec.dtype, "shape": list(spec.shape), "bytes": spec.nbytes}
            for name, spec in contents.rest.items()
        ],
        "ties": contents.ties,
        "totals": _totals(contents),
    }


def _to_text(contents: Contents, every: bool) -> str:
    rows = [_layer_row(layer) for layer in contents.layers]
    rows += [_tensor_row(name, spec) for name, spec in contents.rest.items()]
    merged: dict[tuple[str, ...], list[tuple[str, tuple[str, ...], int]]] = {}
    for name, cells, size in rows:
        key = (name if every else re.sub(r"\d+", "*", name), *cells)
        merged.setdefault(key, []).append((name, cells, size))
    lines = []
    for (pattern, *_), same in merged.items():
        name = f"{pattern} x{len(same)}" if same[1:] else same[0][0]
        lines.append((name, *same[0][1], f"{sum(size for _, _, size in same):,}"))
    total = _totals(contents)
    bits = total["packed_bits_per_weight"]
    lines.append(("all", "", "", f"{bits:.2f}" if bits else "", f"{total['bytes']:,}"))
    text = text_table(("name", "shape", "stored as", "bits", "bytes"), lines, left=3)
    text += f"\n\n{total['packed_layers']} packed layers, {total['packed_bytes']:,} bytes"
    text += f"; {total['other_tensors']} other tensors, {total['other_bytes']:,} bytes"
    text += f"; {len(contents.checkpoint.headers)} file{'s' if contents.checkpoint.index else ''}"
    return text + "".join(f"\n{', '.join(names[1:])}: tied to {names[0]}" for names in contents.ties)


def _layer_row(layer: PackedLayer) -> tuple[str, tuple[str, ...], int]:
    stored = f"{layer.scheme}, {layer.activations} activations" if layer.activations else str(layer.scheme)
    return layer.name, (f"{layer.rows} x {layer.cols}", stored, f"{layer.bits:.2f}"), layer.nbytes


def _tensor_row(name: str, spec: Spec) -> tuple[str, tuple[str, ...], int]:
    return name, (" x ".join(map(str, spec.shape)), spec.dtype, str(ITEMSIZE[spec.dtype] * 8)), spec.nbytes
