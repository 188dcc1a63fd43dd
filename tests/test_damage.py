"""Damaged files and files of other models: each is one clear error that names file and tensor."""

import json
import struct

import pytest
import torch
from saved_model import Model, frozen, skeleton
from torch import nn

import rquant


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


def header(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewritten(data, change):
    """The file with its header changed, otherwise well formed."""
    fields, body = header(data)
    body = change(fields, bytearray(body)) or body
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + body


def poke(name, value, dtype="<e"):
    """Overwrite the first element of a tensor."""

    def change(fields, body):
        struct.pack_into(dtype, body, fields[name]["data_offsets"][0], value)
        return body

    return change


def newer(fields, body):
    config = json.loads(fields["__metadata__"]["rquant"])
    fields["__metadata__"]["rquant"] = json.dumps({**config, "format": 2, "rquant": "9.8.7"})


def reshape(fields, body):
    fields["embed.weight_packed"]["shape"].reverse()


def retype(fields, body):
    fields["embed.weight_packed"]["dtype"] = "I8"


def rename(fields, body):
    fields["body.0.bia"] = fields.pop("body.0.bias")


def lose(fields, body):
    del fields["__metadata__"]["rquant"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "not a whole safetensors file"),
        (lambda data: data[:100], "not a whole safetensors file"),
        (lambda data: data[:5], "not a whole safetensors file"),
        (lambda data: b"", "not a whole safetensors file"),
        (lambda data: b"\xff" * 8 + data[8:], "not a whole safetensors file"),
        (lambda data: struct.pack("<Q", 1 << 40) + data[8:], "not a whole safetensors file"),
        (lambda data: rewritten(data, newer), r"format 1 or older, got format 2 \(written by rquant 9.8.7"),
        (lambda data: rewritten(data, reshape), "checksum"),
        (lambda data: rewritten(data, retype), "checksum"),
        (lambda data: rewritten(data, rename), "checksum"),
        (lambda data: rewritten(data, lose), "expected a file written by rquant.save"),
        (lambda data: rewritten(data, poke("body.0.weight_scale", torch.nan)), r"body.0.weight_scale: .*nan at \[0, 0\]"),
        (lambda data: rewritten(data, poke("body.0.weight_scale", 0.0)), r"body.0.weight_scale: .*0.0 at \[0, 0\]"),
        (lambda data: rewritten(data, poke("body.0.weight_scale", -1.0)), r"body.0.weight_scale: .*-1.0 at \[0, 0\]"),
        (lambda data: rewritten(data, poke("embed.weight_zero_point", 200, "B")), r"embed.weight_zero_point: .*200 at \[0, 0\]"),
        (lambda data: rewritten(data, poke("body.0.bias", torch.inf, "<f")), r"body.0.bias: .*\[0\]"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_error(damage, message, path):
    rquant.save(frozen(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        rquant.load(path, skeleton())
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_every_flipped_byte_of_the_header_is_an_error(path):
    model = nn.Sequential(nn.Linear(4, 2))
    rquant.quantize(model, "int4")
    rquant.freeze(model)
    rquant.save(model, path)
    data = path.read_bytes()
    end = 8 + len(data[8 : 8 + struct.unpack("<Q", data[:8])[0]].rstrip())
    quiet = b'"format":"pt"'  # which readers other than ours look at
    skip = range(data.index(quiet), data.index(quiet) + len(quiet))
    for at in range(end):
        if at in skip:
            continue
        for flip in (1, 0x20):
            path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            with pytest.raises(ValueError, match=r"m\.safetensors: "):
                rquant.load(path, nn.Sequential(nn.Linear(4, 2)))


def wide():
    model = Model()
    model.body[0] = nn.Linear(64, 71)
    return model


def without_norm():
    model = Model()
    del model.body[3]
    return model


def with_more():
    model = Model()
    model.extra = nn.Linear(2, 2)
    return model


def without_body():
    model = Model()
    del model.body
    return model


def other_kind():
    model = Model()
    model.body[0] = nn.LayerNorm(64)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (wide, r"body.0.*\(71,?.*\), got \(70"),
        (without_norm, "body.3.bias: unexpected, and 1 more"),
        (with_more, "extra.bias: missing, and 1 more"),
        (without_body, "module 'body.0': expected in the model"),
        (other_kind, "module 'body.0': linear: .*LayerNorm"),
    ],
)
def test_another_model_s_file(build, message, path):
    rquant.save(frozen(), path)
    with pytest.raises(ValueError, match=message) as error:
        rquant.load(path, build())
    assert str(error.value).startswith(f"{path}: ")


def test_a_state_dict_that_does_not_fit():
    model = frozen()
    state, qmap = model.state_dict(), rquant.quantization_map(model)
    del state["body.2.weight_scale"]
    with pytest.raises(ValueError, match=r"state_dict: body.2.weight_scale: missing"):
        rquant.requantize(skeleton(), state, qmap)
    with pytest.raises(ValueError, match="state_dict: more: unexpected"):
        rquant.requantize(skeleton(), {**model.state_dict(), "more": torch.zeros(1)}, qmap)
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        rquant.requantize(skeleton(), model.state_dict(), {**qmap, "format": 2})
    qmap["buffers"]["angles"]["base64"] = "AAAA"
    with pytest.raises(ValueError, match="buffer 'angles' is damaged"):
        rquant.requantize(skeleton(), model.state_dict(), qmap)


def test_no_file():
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        rquant.load("none.safetensors", skeleton())
