"""Directories of shards: whole or an error that names file and tensor; layers unpacked once."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from saved_model import IDS, Model, frozen, skeleton
from torch import nn

import rquant
from rquant import nn as rnn
from rquant.io import safetensors_file, sharded
from rquant.io.checkpoint import INDEX, SINGLE, parse_size

LIMIT = 2000  # bytes: four shards


def files(folder):
    return sorted(os.listdir(folder))


@pytest.fixture
def folder(tmp_path):
    rquant.save(frozen(), tmp_path / "m", max_shard_size=LIMIT)
    return tmp_path / "m"


@pytest.mark.parametrize("scheme", [{"weights": "int8"}, {"weights": "int4", "group_size": 7}], ids=str)
@pytest.mark.parametrize("limit", [1, LIMIT, "1.5KB", "5GB"])
def test_shards_come_back(scheme, limit, tmp_path):
    model = frozen(**scheme)
    rquant.save(model, tmp_path, limit)
    loaded = rquant.load(tmp_path, skeleton())
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.embed.held["_panels"] is loaded.head.held["_panels"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_the_names_are_those_of_hugging_face(folder):
    count = len(files(folder)) - 1
    assert count >= 3
    assert files(folder) == [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] + [INDEX]
    index = json.loads((folder / INDEX).read_text())
    sizes = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as opened:
            sizes[file] = sizes.get(file, 0) + opened.get_tensor(name).nbytes
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    layers = {name.rpartition(".")[0] for name in index["weight_map"] if "weight_" in name}
    largest = max(
        sum(t.nbytes for n, t in frozen().state_dict().items() if n.startswith(f"{layer}.weight_"))
        for layer in layers
    )
    assert all(size <= max(LIMIT, largest) for size in sizes.values())


def test_an_index_is_a_path_too(folder):
    assert torch.equal(rquant.load(folder / INDEX, skeleton())(IDS), frozen()(IDS))


def test_a_directory_without_a_limit_holds_one_file(tmp_path):
    rquant.save(frozen(), tmp_path)
    assert files(tmp_path) == [SINGLE]
    assert torch.equal(rquant.load(tmp_path, skeleton())(IDS), frozen()(IDS))


def test_saving_again_replaces_everything_of_the_last_save(folder):
    (folder / "config.json").write_text("{}")
    rquant.save(frozen("int8"), folder, 1)
    assert len(files(folder)) > 6
    rquant.save(frozen("int2"), folder, LIMIT)
    assert torch.equal(rquant.load(folder, skeleton())(IDS), frozen("int2")(IDS))
    shards = {f for f in files(folder) if f.startswith("model-")}
    assert shards == set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    rquant.save(frozen("int4"), folder)
    assert files(folder) == ["config.json", SINGLE]
    rquant.save(frozen("int4"), folder, LIMIT)
    assert SINGLE not in files(folder)


def header(path):
    data = path.read_bytes()
    size = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:size]), data[size:]


def flip(path, tensor):
    fields, body = header(path)
    body = bytearray(body)
    body[fields[tensor]["data_offsets"][0] + 5] ^= 1
    path.write_bytes(path.read_bytes()[: -len(body)] + body)


def shard_of(folder, tensor):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_a_flipped_bit_is_an_error_that_names_file_and_tensor(folder):
    for tensor in ("body.0.weight_packed", "body.3.weight", "mask"):
        path = shard_of(folder, tensor)
        before = path.read_bytes()
        flip(path, tensor)
        with pytest.raises(ValueError, match="its bytes are not those that were saved") as error:
            rquant.load(folder, skeleton())
        assert str(error.value).startswith(f"{path}: {tensor}: ")
        path.write_bytes(before)
    rquant.load(folder, skeleton())


def test_so_it_is_in_a_single_file(tmp_path):
    path = tmp_path / "m.safetensors"
    rquant.save(frozen(), path)
    flip(path, "body.2.weight_packed")
    with pytest.raises(ValueError, match=r"m.safetensors: body.2.weight_packed: its bytes"):
        rquant.load(path, skeleton())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, p: p.unlink(), r"{p}: no such file"),
        (lambda f, p: p.write_bytes(p.read_bytes()[:-1]), r"{p}: not a whole safetensors file"),
        (lambda f, p: p.write_bytes(p.read_bytes() + b"\0"), r"{p}: not a whole safetensors file"),
        (lambda f, p: (f / INDEX).unlink(), r"{f}: expected model.safetensors or .*, got neither"),
        (lambda f, p: (f / INDEX).write_bytes((f / INDEX).read_bytes()[:-30]), r"{i}: not a whole index"),
        (lambda f, p: edit_index(f, lambda i: i["weight_map"].pop("mask")), r"{m}: mask: unexpected"),
        (lambda f, p: edit_index(f, lambda i: i["weight_map"].update(more=p.name)), r"{p}: more: missing"),
        (
            lambda f, p: edit_index(f, lambda i: i["weight_map"].update(mask="../x.safetensors")),
            r"{i}: .*beside it",
        ),
        (lambda f, p: edit_index(f, lambda i: i["metadata"].pop("rquant_files")), r"{i}: not a whole index"),
        (
            lambda f, p: edit_index(f, lambda i: i["metadata"].update(total_size=7)),
            r"{i}: expected total_size",
        ),
        (
            lambda f, p: edit_index(f, lambda i: i["metadata"].pop("rquant")),
            r"{f}: expected a file written by rquant",
        ),
        (
            lambda f, p: edit_index(
                f, lambda i: i["metadata"].update(rquant=i["metadata"]["rquant"].replace("qint4", "qint2", 1))
            ),
            r"{f}: .*checksum",
        ),
        (lambda f, p: p.replace(f / SINGLE), r"{f}: expected model.safetensors or .*, got both"),
    ],
)
def test_a_damaged_set_is_one_clear_error(damage, message, folder):
    path = shard_of(folder, "body.0.weight_packed")
    places = {"p": path, "f": folder, "i": folder / INDEX, "m": shard_of(folder, "mask")}
    damage(folder, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message.format(**places)) as error:
        rquant.load(folder, skeleton())
    assert "\n" not in str(error.value)


def test_a_shard_of_another_save_is_an_error(folder, tmp_path):
    """The same names, sizes and dtypes: only the values differ."""
    model = Model().eval()
    with torch.no_grad():
        model.body[0].weight.mul_(-1)
    rquant.quantize(model, "int4")
    rquant.freeze(model)
    rquant.save(model, tmp_path / "other", LIMIT)
    path = shard_of(folder, "body.0.weight_packed")
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(ValueError, match=r"is not the file that .* was written with") as error:
        rquant.load(folder, skeleton())
    assert str(error.value).startswith(f"{path}: ")


def test_a_lone_shard_is_no_model(folder):
    with pytest.raises(ValueError, match=r"is part 1 of .* of a checkpoint: give its directory"):
        rquant.load(folder / files(folder)[0], skeleton())


def test_another_model_s_set_names_the_file(folder):
    model = Model()
    model.body[3] = nn.LayerNorm(63)
    with pytest.raises(ValueError, match=r"body.3.weight: expected shape \(63,\), got \(64,\)") as error:
        rquant.load(folder, model)
    assert str(error.value).startswith(f"{shard_of(folder, 'body.3.weight')}: ")


def test_a_save_that_fails_while_writing_leaves_the_old_set(folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        rquant.save(frozen("int2"), folder, LIMIT)
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


@pytest.mark.parametrize("moves", range(5))
def test_a_save_that_dies_between_files_is_never_loaded_as_whole(moves, folder, monkeypatch):
    """Killed between two of the renames that put the new set in place: neither old nor new, and it says so."""
    replace, done = os.replace, []

    def dying(a, b):
        if Path(b).parent == folder:
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(b)
        replace(a, b)

    monkeypatch.setattr(sharded.os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        rquant.save(frozen("int8"), folder, LIMIT)
    with pytest.raises((ValueError, FileNotFoundError)):
        rquant.load(folder, skeleton())


def test_a_layer_is_unpacked_once(tmp_path, monkeypatch):
    model = frozen()
    calls = []
    unpack = rnn.storage._native.unpack
    monkeypatch.setattr(rnn.storage._native, "unpack", lambda panels: calls.append(1) or unpack(panels))
    rquant.save(model, tmp_path / "m.safetensors")
    assert len(calls) == 3  # embed and head are one
    rquant.save(model, tmp_path, LIMIT)
    assert len(calls) == 6


def test_a_limit_must_be_a_size_and_the_path_a_directory(tmp_path):
    assert parse_size("5GB", "x") == 5 * 10**9
    assert parse_size("2GiB", "x") == 2**31
    assert parse_size("0.5kb", "x") == 500
    assert parse_size(7, "x") == 7
    for bad in (0, -1, "5 potatoes", "IB", True, ""):
        with pytest.raises(ValueError, match="max_shard_size: expected a positive number of bytes"):
            rquant.save(frozen(), tmp_path, bad)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="path: expected a directory"):
        rquant.save(frozen(), tmp_path / "file", 5)
    assert files(tmp_path) == ["file"]
