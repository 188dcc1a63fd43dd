"""Files of format 1, written once, are read equal for ever, and written again the same."""

import json
import sys
from pathlib import Path

import pytest
import torch

import rquant

HERE = Path(__file__).parent / "golden"
sys.path.insert(0, str(HERE))

from make import SCHEMES, Model, build, facts, quantized  # noqa: E402

FILES = sorted(HERE.glob("format1-*.safetensors"))


def test_every_scheme_has_its_file():
    assert {path.stem.removeprefix("format1-") for path in FILES} == set(SCHEMES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_file_is_read_equal(path):
    with torch.device("meta"):
        skeleton = Model()
    model = rquant.load(path, skeleton)
    assert facts(model) == json.loads(path.with_suffix(".json").read_text())
    assert model.embed.held["_panels"] is model.head.held["_panels"]
    assert model(torch.arange(12)).isfinite().all()


@pytest.mark.parametrize("name", SCHEMES)
def test_quantizing_again_gives_the_golden_bytes(name, tmp_path):
    golden = rquant.load(HERE / f"format1-{name}.safetensors", Model())
    again = quantized(name)
    for (key, a), (_, b) in zip(again.state_dict().items(), golden.state_dict().items(), strict=True):
        assert a.dtype == b.dtype, key
        assert torch.equal(a, b), key
    rquant.save(golden, tmp_path / "again.safetensors")
    resaved = rquant.load(tmp_path / "again.safetensors", Model())
    assert facts(resaved) == facts(golden)


def test_the_schemes_cover_what_the_format_can_store():
    golden = {name: rquant.load(HERE / f"format1-{name}.safetensors", Model()) for name in SCHEMES}
    dtypes = {
        name: {key: t.dtype for key, t in model.body.state_dict().items()} for name, model in golden.items()
    }
    assert {d["weight_scale"] for d in dtypes.values()} == {torch.float16, torch.float32}
    assert {d.get("weight_zero_point") for d in dtypes.values()} == {None, torch.uint8, torch.float16}
    assert dtypes["int4-wide-scales"]["weight_scale"] == torch.float32
    assert build("int4").body.weight.shape == (7, 37)
