"""Checkpoints quantized from file to file: loadable, resumed after any death, in little memory."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import memory
import pytest
import torch
from checkpoints import (
    KILLED,
    SHARDS,
    begun,
    contents,
    convert,
    free_of,
    large,
    save_shards,
    small,
    wish,
)
from safetensors.torch import load_file, save_file
from saved_model import IDS, Model, frozen
from torch import nn

import rquant
from rquant.scheme import Scheme
from rquant.streaming import quantize_checkpoint


def state_of(model, path, **more):
    """The state dict as Hugging Face saves it, each tied tensor once."""
    state = {name: t for name, t in model.state_dict().items() if name != "head.weight"}
    save_file({**state, **more}, path)


@pytest.mark.parametrize(("include", "embed"), [((), None), (("*",), "int4")], ids=["default", "embedding"])
def test_a_file_loads_into_the_skeleton(include, embed, tmp_path):
    """Equal to the model quantized in memory; the tied head follows its embedding."""
    model = Model().eval()
    state_of(model, tmp_path / "a.safetensors")
    quantize_checkpoint(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", wish(include=include, activations="int8")
    )
    loaded = rquant.load(tmp_path / "b.safetensors", Model().eval())
    rquant.quantize(model, "int4", "int8", exclude=None if embed else ["embed", "head"])
    rquant.freeze(model)
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.embed.weight.dtype == loaded.head.weight.dtype
    if embed:
        assert loaded.embed.held["_panels"] is loaded.head.held["_panels"]
    else:
        assert loaded.embed.weight is loaded.head.weight
    rquant.save(loaded, tmp_path / "c.safetensors")  # and is a model as any other
    assert torch.equal(rquant.load(tmp_path / "c.safetensors", Model().eval())(IDS), model(IDS))


def test_what_a_skeleton_on_meta_lacks_is_named(tmp_path):
    state_of(Model(), tmp_path / "a.safetensors")
    quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", wish())
    with torch.device("meta"):
        skeleton = Model()
    with pytest.raises(ValueError, match="angles: expected this non-persistent buffer's values"):
        rquant.load(tmp_path / "b.safetensors", skeleton)
    with torch.device("meta"):
        skeleton = Model()
    skeleton.register_buffer("angles", torch.arange(8.0), persistent=False)
    assert torch.equal(rquant.load(tmp_path / "b.safetensors", skeleton).angles, torch.arange(8.0))


def test_tied_weights_that_the_file_has_apart_are_an_error(tmp_path):
    state_of(Model(), tmp_path / "a.safetensors", **{"head.weight": Model().head.weight.detach().clone()})
    quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", wish())
    with pytest.raises(
        ValueError, match=r"is tied to embed.weight in the model, but the file has one packed"
    ):
        rquant.load(tmp_path / "b.safetensors", Model())


def test_a_module_that_cannot_be_packed_is_named(tmp_path):
    class Positions(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids + 2)

    save_file({"embed.weight": torch.randn(8, 8)}, tmp_path / "a.safetensors")
    quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", wish(include=("*",)))
    for module, why in [
        (Positions(8, 8), "a forward of its own"),
        (nn.Bilinear(8, 1, 8), "no quantized form"),
    ]:
        with pytest.raises(
            ValueError, match=f"b.safetensors: module 'embed': expected one that can be packed.*{why}"
        ):
            rquant.load(tmp_path / "b.safetensors", nn.ModuleDict({"embed": module}))


def test_conv1d_is_told_by_config_json_and_checked(tmp_path):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    def model():
        torch.manual_seed(0)
        return nn.ModuleDict({"c_attn": conv1d(64, 64)})

    save_file(model().state_dict(), tmp_path / "model.safetensors")
    quantize_checkpoint(tmp_path / "model.safetensors", tmp_path / "wrong.safetensors", wish())
    with pytest.raises(
        ValueError, match=r"c_attn: expected a weight that was transposed for Conv1D; see .*--transposed"
    ):
        rquant.load(tmp_path / "wrong.safetensors", model())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    quantize_checkpoint(tmp_path / "model.safetensors", tmp_path / "right.safetensors", wish())
    loaded = rquant.load(tmp_path / "right.safetensors", model())
    want = rquant.Linear.from_float(model().c_attn, "int4")
    assert torch.equal(loaded.c_attn.canonical().codes, want.canonical().codes)


def test_a_directory_is_copied_along(tmp_path):
    source = small()
    names = sorted(source)
    save_shards(tmp_path / "in", [{n: source[n] for n in names[i::SHARDS]} for i in range(SHARDS)])
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", wish())
    files = set(contents(tmp_path / "out"))
    assert files == set(contents(tmp_path / "in")) - {"pytorch_model.bin", ".cache"}
    assert (tmp_path / "out/sub/vocab.txt").read_text() == "a b c"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "llama"
    told = config["quantization_config"]
    assert (told["quant_method"], told["weights"], told["group_size"]) == ("rquant", "qint4", 64)
    (layers,) = told["layers"]
    assert sorted(layers.pop("names")) == ["body.0.down", "body.0.up", "body.1.up", "body.1.zero"]
    assert layers == {"class": "Linear", **Scheme.resolve("int4").to_dict(), "activations": None}
    save_file(source, tmp_path / "one.safetensors")
    quantize_checkpoint(tmp_path / "one.safetensors", tmp_path / "one-out.safetensors", wish())
    whole, parts = load_file(tmp_path / "one-out.safetensors"), {}
    for i in range(SHARDS):
        parts |= load_file(tmp_path / f"out/model-{i + 1:05}-of-{SHARDS:05}.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_directory_loads_into_the_skeleton(tmp_path):
    model = Model().eval()
    state = {name: t for name, t in model.state_dict().items() if name != "head.weight"}
    names = sorted(state)
    save_shards(tmp_path / "in", [{n: state[n] for n in names[i::2]} for i in range(2)])
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", wish(include=("*",)))
    assert torch.equal(rquant.load(tmp_path / "out", Model().eval())(IDS), frozen()(IDS))


def test_killed_anywhere_it_goes_on_and_the_bytes_are_the_same(tmp_path):
    """kill -9 within a shard, between shards, at renames: of the journal, of a shard, of the result."""
    large(tmp_path / "in", 100)
    arguments = ("--weights", "int4", "--quiet")
    assert convert(tmp_path / "in", tmp_path / "whole", *arguments)[0] == 0
    out, code, states = tmp_path / "out", KILLED, []
    points = [("write", 2), ("begin", 1), ("write", 4), ("any", 5), ("begin", 1), ("rename", 3), ("any", 0)]
    for point in [*points, ("any", 9), ("none", 0)]:
        code, told, err = convert(tmp_path / "in", out, *arguments, kill_at=point)
        if code != KILLED:
            break
        assert not out.exists()
        with pytest.raises((ValueError, FileNotFoundError)):
            rquant.load(tmp_path / "out.partial", nn.Linear(1, 1))
        files = [path.suffix for path in (tmp_path / "out.partial").rglob("model-*")]
        states.append((files.count(".safetensors"), files.count(".part")))
    assert code == 0, err
    assert "were done before" in told
    assert {(0, 1), (1, 0), (1, 1), (2, 0)} <= set(states), states  # (shards done, shards begun)
    assert contents(out) == contents(tmp_path / "whole")
    assert free_of(out)


@pytest.mark.parametrize("wide", [False, True], ids=["float16 scales", "one that is too small"])
def test_a_single_file_goes_on_too(wide, tmp_path):
    state = {f"layers.{i}.weight": torch.randn(256, 512) for i in range(8)}
    if wide:
        state["layers.5.weight"] *= 1e-7
    save_file(state, tmp_path / "in.safetensors")
    arguments = (tmp_path / "in.safetensors", "--weights", "int4", "--quiet")
    assert convert(arguments[0], tmp_path / "whole.safetensors", *arguments[1:])[0] == 0
    out, code, runs = tmp_path / "out.safetensors", KILLED, 0
    while code == KILLED:
        assert not out.exists()
        code, _, err = convert(arguments[0], out, *arguments[1:], kill_at=("any", 15), at_once=1)
        runs += 1
        assert runs < 30
    assert code == 0, err
    assert runs > 2
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert free_of(out)


def test_death_after_the_last_rename_is_noticed(tmp_path):
    """The result is in place, the workspace is not yet gone: the next run tidies up."""
    save_file(small(), tmp_path / "in.safetensors")
    quantize_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", wish())
    before = contents(tmp_path / "out.safetensors")
    (tmp_path / "out.safetensors").unlink()
    script = (
        "import os, shutil, signal, sys\n"
        "from rquant.streaming import work\n"
        "shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from rquant.cli import main\n"
        "main(['quantize', *sys.argv[1:], '--weights', 'int4', '--quiet'])\n"
    )
    paths = [str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")]
    assert subprocess.run([sys.executable, "-c", script, *paths]).returncode == KILLED
    assert not free_of(tmp_path / "out.safetensors")
    assert convert(*paths, "--weights", "int4", "--quiet")[0] == 0
    assert contents(tmp_path / "out.safetensors") == before
    assert free_of(tmp_path / "out.safetensors")


def test_another_job_starts_anew(tmp_path):
    large(tmp_path / "in", 3)
    assert (
        convert(
            tmp_path / "in", tmp_path / "out", "--weights", "int4", "--quiet", kill_at=("any", 12), at_once=1
        )[0]
        == KILLED
    )
    assert convert(tmp_path / "in", tmp_path / "out", "--weights", "int8", "--quiet")[0] == 0
    quantize_checkpoint(tmp_path / "in", tmp_path / "whole", wish("int8"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupted_by_hand(tmp_path):
    large(tmp_path / "in", 3)
    process = begun(tmp_path / "in", tmp_path / "out")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert err == "rquant quantize: interrupted; the same command goes on where this one was\n"
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_two_processes_do_not_write_one_result(tmp_path):
    large(tmp_path / "in", 3)
    process = begun(tmp_path / "in", tmp_path / "out", "--quiet")
    with pytest.raises(ValueError, match="another process is writing it"):
        quantize_checkpoint(tmp_path / "in", tmp_path / "out", wish())
    process.kill()
    process.communicate()


def test_an_existing_result_is_left_alone(tmp_path):
    save_file(small(), tmp_path / "in.safetensors")
    save_shards(tmp_path / "in", [small()])
    (tmp_path / "file").touch()
    for name in ("folder", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    for source, name, message in [
        ("in.safetensors", "file", "file: exists already"),
        ("in.safetensors", "other", "other.partial: expected to make this directory"),
        ("in.safetensors", "folder", "out: expected the name of a file"),
        ("in", "folder", "folder: exists already"),
        ("in", "in/out", "out: expected a path outside of"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantize_checkpoint(tmp_path / source, tmp_path / name, wish())
    assert (tmp_path / "file").read_bytes() == b""
    assert (tmp_path / "folder/mine").exists()
    assert (tmp_path / "other.partial/mine").exists()
    (tmp_path / "empty").mkdir()
    quantize_checkpoint(tmp_path / "in/model.safetensors.index.json", tmp_path / "empty", wish())
    assert (tmp_path / "empty/config.json").exists()


def test_rules_include_exclude_and_what_matches_nothing(tmp_path):
    save_file(small(), tmp_path / "in.safetensors")

    def quantized(**options):
        out = tmp_path / f"{len(os.listdir(tmp_path))}.safetensors"
        made = quantize_checkpoint(tmp_path / "in.safetensors", out, wish(**options))
        return {name: str(scheme) for name, scheme in made.quantized.items()}

    int8, int2 = Scheme.resolve("int8"), Scheme.resolve("int2")
    assert set(quantized(exclude=("body.0",))) == {"body.1.up", "body.1.zero"}
    assert set(quantized(include=("embed*", "re:.*up"))) == {"embed_tokens", "body.0.up", "body.1.up"}
    mixed = quantized(rules=(("body.0.up", int8), ("body.0", int2), ("body.1", None), ("gate", int8)))
    assert mixed == {"body.0.up": str(int8), "body.0.down": str(int2), "gate": str(int8)}
    with pytest.raises(ValueError, match=r"include: expected a regular expression, got 're:\('"):
        quantized(include=("re:(",))
    for argument, value in [("include", "norm"), ("exclude", "lm_head"), ("transposed", "x"), ("rules", "x")]:
        patterns = ((value, int8),) if argument == "rules" else (value,)
        with pytest.raises(
            ValueError, match=rf"in.safetensors: {argument.removesuffix('s')}.*{value!r} matches nothing"
        ):
            quantized(**{argument: patterns})
    experts = {f"mlp.experts.{i}.w1.weight": torch.ones(4, 4) for i in range(2)}
    save_file({**small(), **experts, "embed_out.weight": torch.ones(4, 4)}, tmp_path / "in.safetensors")
    assert {"mlp.experts.1.w1", "embed_out"} <= quantized().keys()
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert not {"mlp.experts.1.w1", "embed_out"} & {*quantized(), *quantized(include=("*",))}
    assert "mlp.experts.1.w1" in quantized(rules=(("*.experts", int8),))
    assert quantized(exclude=("lm_head",))  # the head is the embedding, and float as that is
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": false}')
    with pytest.raises(ValueError, match="'lm_head' matches nothing"):
        quantized(exclude=("lm_head",))


MEMORY = """
import sys
from memory import peak
from rquant.scheme import Scheme
from rquant.streaming import Wish, quantize_checkpoint
before = peak()
quantize_checkpoint(sys.argv[1], sys.argv[2], Wish(Scheme.resolve("int4")))
print(peak() - before)
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(not memory.TOLD, reason="/proc is Linux's")
def test_one_tensor_is_in_memory(tmp_path):
    """The whole process's peak, mapped files included; the source is some 140 MB."""
    state = {f"layers.{i}.weight": torch.randn(4096, 2048) for i in range(4)}
    save_file(state, tmp_path / "in.safetensors")
    paths = [str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")]
    command = [sys.executable, "-c", MEMORY, *paths]
    grown = int(subprocess.check_output(command, cwd=Path(__file__).parent, text=True))
    assert grown < 4096 * 2048 * 4 + 24e6
