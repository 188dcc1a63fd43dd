"""`rquant quantize` and `rquant inspect` as a user types them."""

import contextlib
import json
import os
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import KILLED, convert, large, save_shards, small
from safetensors.torch import load_file, save_file
from saved_model import frozen

import rquant
from rquant import cli


@pytest.fixture
def source(tmp_path):
    save_file(small(), tmp_path / "in.safetensors")
    return str(tmp_path / "in.safetensors")


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.safetensors")


def told(path, capsys):
    capsys.readouterr()
    assert cli.main(["inspect", path, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_argument_reaches_the_file(source, out, capsys):
    arguments = ["--weights", "int4", "--group-size", "16", "--symmetric", "--activations", "int8"]
    arguments += [
        "--exclude",
        "body.1",
        "--exclude",
        "body.0.down",
        "--rule",
        "gate=int8",
        "--rule",
        "embed*=int2:8:affine",
    ]
    assert cli.main(["quantize", source, out, *arguments, "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "3 weights quantized" in said.out
    assert "kept 18.82 kB in 2 tensors: excluded by 'body.1'" in said.out
    assert "GB/s" in said.out
    layers = {layer["name"]: layer for layer in told(out, capsys)["layers"]}
    assert {
        name: (v["weights"], v["group_size"], v["symmetric"], v["activations"]) for name, v in layers.items()
    } == {
        "body.0.up": ("qint4", 16, True, "qint8"),
        "gate": ("qint8", -1, True, "qint8"),
        "embed_tokens": ("qint2", 8, False, None),
    }


def test_optimizers_float8_and_casts(source, out, capsys):
    arguments = ["--weights", "float8_e5m2", "--activations", "float8_e4m3fn", "--quiet"]
    arguments += [
        "--rule",
        "body.0.up=int2:16:hqq",
        "--rule",
        "body.0.down=float16",
        "--rule",
        "gate=int4:mse",
    ]
    assert cli.main(["quantize", source, out, *arguments]) == 0
    layers = {layer["name"]: layer for layer in told(out, capsys)["layers"]}
    assert {n: (v["weights"], v["group_size"], v.get("optimizer")) for n, v in layers.items()} == {
        "body.0.up": ("qint2", 16, "hqq"),
        "body.0.down": ("qfloat16", -1, None),
        "gate": ("qint4", 64, "mse"),
        "body.1.up": ("qfloat8_e5m2", -1, None),
        "body.1.zero": ("qfloat8_e5m2", -1, None),
    }
    assert {layer["activations"] for layer in layers.values()} == {"qfloat8_e4m3fn"}
    other = f"{out}.hqq"
    assert cli.main(["quantize", source, other, "--weights", "int4", "--optimizer", "hqq", "--quiet"]) == 0
    assert {layer["optimizer"] for layer in told(other, capsys)["layers"]} == {"hqq"}
    assert cli.main(["quantize", source, f"{out}.bad", "--optimizer", "hqq"]) == 1
    assert "optimizer: expected symmetric=False for 'hqq'" in capsys.readouterr().err


def test_include_and_transposed(source, out, capsys):
    command = [
        "quantize",
        source,
        out,
        "--include",
        "body.0.up",
        "body.1.zero",
        "--transposed",
        "body.0.up",
        "--quiet",
    ]
    assert cli.main(command) == 0
    layers = {layer["name"]: layer["shape"] for layer in told(out, capsys)["layers"]}
    assert layers == {"body.0.up": [67, 70], "body.1.zero": [3, 5]}


def test_no_torch_is_needed(source, out):
    """A program of numpy alone, and the bytes are the same."""
    script = (
        "import sys; sys.modules['torch'] = None\nfrom rquant.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "quantize", source, out, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert cli.main(["quantize", source, f"{out}.2.safetensors", "--quiet"]) == 0
    assert load_file(out).keys() == load_file(f"{out}.2.safetensors").keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "int5"], "argument --weights: invalid choice"),
        (["--group-size", "0"], "argument --group-size: expected -1"),
        (["--group-size", "many"], "argument --group-size: expected -1"),
        (["--symmetric", "--affine"], "not allowed with argument"),
        (["--rule", "lm_head"], "argument --rule: expected GLOB=SCHEME, got 'lm_head'"),
        (["--rule", "lm_head=int4:x"], "argument --rule: expected float, or a type"),
        (["--optimizer", "best"], "argument --optimizer: invalid choice"),
        (["--rule", "lm_head=int3"], "argument --rule: expected float, or a type"),
        (["--activations", "int4"], "argument --activations: invalid choice"),
    ],
)
def test_wrong_usage_names_the_argument(arguments, message, source, out, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quantize", source, out, *arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("rquant quantize: ")
    assert message in said
    assert said.count("\n") == 1
    assert not os.path.exists(out)


def truncate(source):
    with open(source, "r+b") as file:
        file.truncate(os.path.getsize(source) - 1)


def pickled(source):
    os.remove(source)
    os.mkdir(source)
    open(os.path.join(source, "pytorch_model.bin"), "w").close()


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (os.remove, [], "{source}: no such file"),
        (truncate, [], "{source}: not a whole safetensors file"),
        (pickled, [], "{source}: expected model.safetensors or model.safetensors.index.json in this directory"),
        (lambda source: None, ["--exclude", "lm_head"], "{source}: exclude: expected a pattern"),
        (lambda source: None, ["--rule", "x=int8"], "{source}: rule: expected a pattern"),
    ],
)  # fmt: skip
def test_what_fails_is_one_line_and_code_1(damage, arguments, message, source, out, capsys):
    damage(source)
    assert cli.main(["quantize", source, out, *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("rquant quantize: " + message.format(source=source))
    assert said.count("\n") == 1
    assert not os.path.exists(out)


def test_a_quantized_checkpoint_is_not_quantized_again(source, out, capsys):
    assert cli.main(["quantize", source, out, "--quiet"]) == 0
    assert cli.main(["quantize", out, f"{out}.again", "--quiet"]) == 1
    assert "got one that is quantized already" in capsys.readouterr().err


def test_inspect_counts_what_the_file_holds(tmp_path, capsys):
    model = frozen("int4", "int8")
    rquant.save(model, tmp_path / "m", max_shard_size=2000)
    found = told(str(tmp_path / "m"), capsys)
    tensors = {}
    for name in found["files"]:
        tensors |= load_file(tmp_path / "m" / name)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers.keys() == {"embed", "body.0", "body.2"}
    assert layers["body.0"]["shape"] == [70, 64]
    assert layers["body.2"]["shape"] == [64, 70]
    for name, layer in layers.items():
        size = sum(t.nbytes for key, t in tensors.items() if key.startswith(f"{name}.weight_"))
        assert layer["bytes"] == size
        assert layer["bits_per_weight"] == pytest.approx(
            size * 8 / layer["shape"][0] / layer["shape"][1], abs=1e-4
        )
        assert f"{name}.weight_packed" in load_file(tmp_path / "m" / layer["file"])
    assert found["ties"] == [["embed.weight", "head.weight"]]
    assert {t["name"]: t["dtype"] for t in found["other"]} == {
        "body.0.bias": "F32", "body.3.bias": "F32", "body.3.weight": "F32", "angles": "F32", "mask": "F32", "steps": "I64",
    }  # fmt: skip
    totals = found["totals"]
    assert (
        totals["bytes"]
        == totals["packed_bytes"] + totals["other_bytes"]
        == sum(t.nbytes for t in tensors.values())
    )


def test_inspect_prints_a_table(source, tmp_path, capsys):
    save_shards(tmp_path / "in", [small()])
    assert (
        cli.main(["quantize", str(tmp_path / "in"), str(tmp_path / "out"), "--weights", "int4", "--quiet"])
        == 0
    )
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    merged = capsys.readouterr().out
    assert cli.main(["inspect", str(tmp_path / "out"), "--all"]) == 0
    every = capsys.readouterr().out
    assert "body.*.up x2" not in merged  # one has float32 scales: its bits differ
    assert "4 packed layers" in merged
    assert "qint4 affine group 64" in merged
    assert "body.0.up" in every
    assert cli.main(["inspect", source]) == 0
    assert "0 packed layers" in capsys.readouterr().out


def test_inspect_says_what_is_damaged(tmp_path, capsys):
    rquant.save(frozen(), tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data.replace(b"qint4", b"qint2", 1))
    assert cli.main(["inspect", str(tmp_path / "m.safetensors")]) == 1
    assert "m.safetensors: the header is damaged" in capsys.readouterr().err
    save_file({"a.weight_packed": next(iter(small().values()))}, tmp_path / "alone.safetensors")
    assert cli.main(["inspect", str(tmp_path / "alone.safetensors")]) == 1
    assert "a.weight_packed: packed, but nothing says how" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_has_enough_is_no_error(source):
    command = f"{shlex.join([sys.executable, '-m', 'rquant', 'inspect', source, '--all'])} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("name")


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_bar_on_a_terminal_also_when_it_goes_on(tmp_path):
    pytest.importorskip("tqdm")
    import fcntl
    import termios

    large(tmp_path / "in", 3)
    assert convert(tmp_path / "in", tmp_path / "out", kill_at=("write", 12), at_once=1)[0] == KILLED
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "rquant", "quantize", tmp_path / "in", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, text=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while part := os.read(ours, 100_000):  # it holds a few kB, and then who writes waits
            shown += part
    os.close(ours)
    told, _ = process.communicate()
    assert process.returncode == 0, shown
    assert b"quantizing: 100%" in shown
    assert "were done before" in told


def test_the_readme_s_commands_run(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"## From the command line\n\n```sh\n(.*?)```", readme, re.DOTALL)[1].splitlines()
    weights = {f"layers.0.{name}.weight": torch.randn(8, 8) for name in ("up_proj", "down_proj")}
    save_shards(tmp_path / "model", [weights])
    monkeypatch.chdir(tmp_path)
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "rquant"
        assert cli.main(arguments) == 0
    assert "qint8 symmetric per channel" in capsys.readouterr().out
