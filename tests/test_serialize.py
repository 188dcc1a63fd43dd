"""Files and maps: they come back equal and tied, small, one tensor at a time."""

import copy
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import memory
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_model import IDS, Model, frozen, skeleton
from torch import nn

import rquant
from rquant.io import safetensors_file
from rquant.serialize import modelmap


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


def assert_same(loaded, model):
    assert torch.equal(loaded(IDS), model(IDS))
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert loaded.embed.held["_panels"] is loaded.head.held["_panels"]
    for name, tensor in model.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name], tensor)
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert not any(module.training for module in loaded.modules())


SCHEMES = [
    {"weights": "int8"},
    {"weights": "int8", "activations": "int8", "symmetric": False},
    {"weights": "int4", "group_size": 7},
    {"weights": "int4", "symmetric": True, "group_size": -1},
    {"weights": "int2", "activations": "int8"},
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("build", [skeleton, Model, frozen], ids=["meta", "float", "quantized"])
def test_a_file_comes_back(scheme, build, path):
    model = frozen(**scheme)
    rquant.save(model, path)
    loaded = rquant.load(path, build().eval())
    assert_same(loaded, model)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_state_dict_and_a_map_come_back(scheme, path):
    model = frozen(**scheme)
    save_file(model.state_dict(), path)
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    loaded = rquant.requantize(skeleton(), load_file(path), qmap)
    assert_same(loaded, model)
    assert_same(rquant.requantize(skeleton(), load_file(path), qmap, device="cpu"), model)


def test_an_unfrozen_state_comes_back_unfrozen():
    model = Model().eval()
    rquant.quantize(model, "int4")
    loaded = rquant.requantize(skeleton(), copy.deepcopy(model.state_dict()), rquant.quantization_map(model))
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.head.weight is loaded.embed.weight
    assert not loaded.head.frozen
    assert loaded.head.weight.requires_grad


def test_a_plain_model_comes_back(path):
    model = Model().eval()
    rquant.save(model, path)
    loaded = rquant.load(path, skeleton())
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.head.weight is loaded.embed.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compute_dtype_comes_back(dtype, path):
    model = frozen().to(dtype)
    rquant.save(model, path)
    loaded = rquant.load(path, skeleton())
    assert loaded.embed.weight.dtype == loaded.body[0].bias.dtype == loaded(IDS).dtype == dtype
    assert torch.equal(loaded(IDS), model(IDS))


def test_the_file_is_plain_and_stores_a_tied_weight_once(path):
    rquant.save(frozen(), path)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        metadata = file.metadata()
    assert {"embed.weight_packed", "embed.weight_scale", "embed.weight_zero_point", "angles"} <= names
    assert not any(name.startswith("head") or "_panels" in name for name in names)
    config = json.loads(metadata["rquant"])
    assert config["format"] == 1
    assert config["rquant"] == rquant.__version__
    assert config["ties"] == [["embed.weight", "head.weight"]]
    assert config["buffers"] == ["angles"]


@pytest.mark.parametrize(
    ("weights", "group", "bits"), [("int8", None, 8.1), ("int4", 128, 4.3), ("int2", 32, 2.8)]
)
def test_bits_per_weight_in_the_file(weights, group, bits, path):
    model = nn.Sequential(nn.Linear(384, 256, bias=False))
    rquant.quantize(model, weights, group_size=group)
    rquant.freeze(model)
    rquant.save(model, path)
    with safe_open(path, "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert stored * 8 / (384 * 256) <= bits


def test_a_float_zero_point_is_read(path):
    """Files of HQQ kind: a fractional Z in float16."""
    model = nn.Sequential(nn.Linear(64, 8))
    rquant.quantize(model, "int4")
    rquant.freeze(model)
    state, qmap = model.state_dict(), rquant.quantization_map(model)
    state["0.weight_zero_point"] = state["0.weight_zero_point"].half() - 8 + 0.25
    qmap["modules"]["0"]["zero_point_dtype"] = "float16"
    shifted = rquant.requantize(nn.Sequential(nn.Linear(64, 8)), state, qmap)
    x = torch.randn(3, 64)
    moved = state["0.weight_scale"].float() * -0.25
    want = model(x) + x.sum(-1, keepdim=True) * moved.T
    torch.testing.assert_close(shifted(x), want)
    rquant.save(shifted, path)
    assert torch.equal(rquant.load(path, nn.Sequential(nn.Linear(64, 8)))(x), shifted(x))


def test_a_large_non_persistent_buffer_is_for_files(path):
    model = frozen()
    model.register_buffer("table", torch.ones(128, 129), persistent=False)
    with pytest.raises(ValueError, match=r"table: .*65536 bytes, got 66048; rquant.save"):
        rquant.quantization_map(model)
    rquant.save(model, path)
    bare = skeleton()
    bare.register_buffer("table", torch.empty(128, 129, device="meta"), persistent=False)
    assert torch.equal(rquant.load(path, bare).table, model.table)


def test_a_model_that_is_one_layer_comes_back(path):
    layer, x = nn.Linear(64, 8), torch.randn(3, 64)
    rquant.quantize(layer, "int4", "int8")
    unfrozen = rquant.requantize(nn.Linear(64, 8), layer.state_dict(), rquant.quantization_map(layer))
    rquant.freeze(layer)
    rquant.save(layer, path)
    qmap = json.loads(json.dumps(rquant.quantization_map(layer)))
    for other in (
        rquant.load(path, nn.Linear(64, 8, device="meta")),
        rquant.requantize(nn.Linear(64, 8, device="meta"), layer.state_dict(), qmap),
        unfrozen,
    ):
        assert type(other) is rquant.Linear
        assert torch.equal(other(x), layer(x))


def test_what_cannot_be_saved(path):
    model = Model()
    rquant.quantize(model)
    with pytest.raises(ValueError, match=r"embed: .*rquant.freeze"):
        rquant.save(model, path)
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("waves", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="complex64"):
        rquant.save(model, path)
    assert not path.exists()


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    rquant.save(frozen("int8"), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        rquant.save(frozen("int4"), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_a_file_has_the_permissions_of_any_new_file(path):
    rquant.save(frozen(), path)
    other = path.with_name("other")
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


LOADING = """
import sys, threading, torch, rquant
from memory import anonymous
from torch import nn
def build():
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(8)), nn.LayerNorm(2048))
small = rquant.Linear.from_float(nn.Linear(64, 64), "int4")  # starts threads
small(torch.zeros(1, 64))
with torch.device("meta"):
    model = build()
before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
rquant.load(sys.argv[1], model)
done.set()
watcher.join()
held = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
print(sum(held.values()), max(held.values()), anonymous() - before, peak[0] - before)
"""


@pytest.mark.skipif(not memory.TOLD, reason="/proc is Linux's")
def test_pain_16_loading_takes_what_is_packed_and_one_tensor(path):
    """Memory while a file is loaded, sampled all along, in a process of its own; float32 would be four times as much."""
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(8)), nn.LayerNorm(2048))
    rquant.quantize(model, "int8")
    rquant.freeze(model)
    rquant.save(model, path)
    command = [sys.executable, "-c", LOADING, str(path)]
    told = subprocess.check_output(command, cwd=Path(__file__).parent, text=True)
    held, largest, grown, peak = map(int, told.split())
    assert held <= 8 * 2048 * 2048 * 1.05
    assert grown <= held * 1.1
    assert peak <= held * 1.1 + largest


def test_names_of_tensors_and_ties():
    model = frozen()
    names = {name for name, _, _ in modelmap.named_tensors(model)}
    assert names == {"body.0.bias", "body.3.weight", "body.3.bias", "angles", "mask", "steps"}
    config = modelmap.describe(model)
    assert config["modules"]["head"]["class"] == "Linear"
    assert config["modules"]["embed"] == {
        "class": "Embedding", "weights": "qint4", "symmetric": False, "group_size": 64,
        "zero_point_dtype": "uint8", "activations": None, "dtype": "float32",
    }  # fmt: skip
