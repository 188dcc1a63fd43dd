"""`rquant eval` and `rquant bench` on model folders of random weights: their figures are the library's."""

import copy
import json
import math
import shutil
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

import tiny_pretrained  # noqa: E402

import rquant  # noqa: E402
from rquant import evaluate  # noqa: E402
from rquant.cli import main  # noqa: E402
from rquant.evaluate import Recipe  # noqa: E402

SCHEMES = ["int8,activations=int8", 'int4,group_size=16,exclude=["model.layers.0","lm_head"]']
SHORT = ["--tokens", "90", "--window", "32"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_pretrained.llama(folder / "llama")
    tiny_pretrained.bert(folder / "bert")
    return folder


def told(argv, capsys):
    assert main(argv) == 0
    return json.loads(capsys.readouterr().out)


def test_eval_tells_what_the_library_computes(folders, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The sea is wide, and the boat is small. " * 9, encoding="utf-8")
    argv = ["eval", str(folders / "llama"), "--text", str(tmp_path / "text.txt"), *SHORT, "--given", "4"]
    for scheme in SCHEMES:
        argv += ["--scheme", scheme]
    found = told([*argv, "--json", "-"], capsys)
    model = evaluate.load_pretrained(folders / "llama").model
    ids = torch.tensor(
        tiny_pretrained.tokenizer()("The sea is wide, and the boat is small. " * 9)["input_ids"][:96]
    )
    quantized = copy.deepcopy(model)
    rquant.quantize(quantized, "int8", activations="int8")
    rquant.freeze(quantized)
    expected = evaluate.compare({"a": model, "b": quantized}, ids.reshape(3, 32), model, given=4)
    assert [row["scheme"] for row in found["rows"]] == ["float", *SCHEMES]
    for row, of in zip(found["rows"], expected.values(), strict=False):
        assert row["perplexity"] == pytest.approx(of.perplexity)
        assert row["kl"] == pytest.approx(of.agreement.kl)
        assert row["top1"] == of.agreement.top1
    assert found["rows"][0]["bytes"] == 4 * sum(p.numel() for p in model.parameters()) + sum(
        b.nbytes for b in model.buffers()
    )
    layers = found["layers"][SCHEMES[1]]
    assert {row["name"].split(".")[2] for row in layers} == {"1"}
    assert all(10 < row["weight_sqnr"] < 30 for row in layers)


def test_the_jsons_fields(folders, capsys):
    """What a reader of the file may rely on; a change of these is a new format."""
    found = told(["eval", str(folders / "llama"), "--scheme", "int8", *SHORT, "--json", "-"], capsys)
    assert found["format"] == 1
    assert found.keys() == {"format", "kind", "rquant", "model", "machine", "settings", "rows", "layers"}
    assert (found["kind"], found["model"]) == ("language", "llama")
    assert found["rows"][1].keys() == {
        *("scheme", "bytes", "perplexity", "change", "accuracy", "kl", "kl_p99", "kl_max", "top1")
    }
    assert found["layers"]["int8"][0].keys() == {"name", "scheme", "weight_sqnr", "output_sqnr"}
    assert found["settings"].keys() == {"windows", "window", "given", "reference", "text", "text_sha256"}


def test_eval_shows_tables_and_writes_a_page(folders, tmp_path, capsys):
    files = {"--json": tmp_path / "e.json", "--report": tmp_path / "e.html"}
    argv = ["eval", str(folders / "llama"), "--scheme", "int4,group_size=16", *SHORT]
    for option, file in files.items():
        argv += [option, str(file)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:4] == ["scheme", "memory", "MB", "perplexity"]
    assert "int4,group_size=16: the worst of 16 layers" in out
    assert json.loads(files["--json"].read_text())["kind"] == "language"
    page = files["--report"].read_text()
    assert page.startswith("<!doctype html>")
    assert page.count('src="data:image/png;base64,') == 2
    assert "the 15 worst of 16 layers" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.html", "e.json"]


def test_a_float_model_alone(folders, capsys):
    found = told(["eval", str(folders / "llama"), *SHORT, "--json", "-"], capsys)
    assert found["rows"][0].keys() == {"scheme", "bytes", "perplexity", "accuracy"}
    assert found["layers"] == {}


def test_a_saved_quantized_model_against_its_float_one(folders, tmp_path, capsys):
    model = Recipe.parse("int4,group_size=16").build(evaluate.load_pretrained(folders / "llama").model)
    small = tmp_path / "small"
    shutil.copytree(folders / "llama", small)
    rquant.save(model, small / "model.safetensors")
    by_file = told(["eval", str(small), "--against", str(folders / "llama"), *SHORT, "--json", "-"], capsys)
    on_the_spot = told(
        ["eval", str(folders / "llama"), "--scheme", "int4,group_size=16", *SHORT, "--json", "-"], capsys
    )
    alone = told(["eval", str(small), *SHORT, "--json", "-"], capsys)["rows"]
    assert [row["scheme"] for row in alone] == ["small"]
    assert alone[0]["perplexity"] == by_file["rows"][1]["perplexity"]
    assert main(["bench", str(small), "--scheme", "int8"]) == 1
    assert "--scheme: expected a float MODEL, got small, which is quantized" in capsys.readouterr().err
    assert by_file["rows"][1].pop("scheme") == "small"
    assert on_the_spot["rows"][1].pop("scheme") == "int4,group_size=16"
    assert by_file["rows"] == on_the_spot["rows"]
    assert by_file["layers"]["small"] == on_the_spot["layers"]["int4,group_size=16"]


def test_a_folder_that_rquant_quantize_wrote(folders, tmp_path, capsys):
    """It leaves an embedding that is tied to the head as it is."""
    float_folder, small = str(folders / "llama"), str(tmp_path / "small")
    assert main(["quantize", float_folder, small, "--weights", "int4", "--group-size", "16"]) == 0
    capsys.readouterr()
    scheme = 'int4,group_size=16,exclude=["lm_head","model.embed_tokens"]'
    on_the_spot = told(["eval", float_folder, "--scheme", scheme, *SHORT, "--json", "-"], capsys)
    by_folder = told(["eval", small, "--against", float_folder, *SHORT, "--json", "-"], capsys)
    for mine, theirs in zip(by_folder["rows"], on_the_spot["rows"], strict=True):
        assert {**mine, "scheme": ""} == {**theirs, "scheme": ""}


def test_a_folder_that_save_pretrained_wrote(folders, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    float_folder, small = folders / "llama", tmp_path / "small"
    config = rquant.RQuantConfig(weights="int4", group_size=16)
    model = AutoModelForCausalLM.from_pretrained(float_folder, quantization_config=config)
    model.save_pretrained(small)
    tiny_pretrained.tokenizer().save_pretrained(small)
    on_the_spot = told(
        ["eval", str(float_folder), "--scheme", "int4,group_size=16", *SHORT, "--json", "-"], capsys
    )
    by_folder = told(["eval", str(small), *SHORT, "--json", "-"], capsys)
    assert by_folder["rows"][0]["perplexity"] == on_the_spot["rows"][1]["perplexity"]


def test_an_encoder_is_compared_by_cosine(folders, capsys):
    found = told(
        ["eval", str(folders / "bert"), "--scheme", "int8", "--scheme", "int2", "--json", "-"], capsys
    )
    exact, int8, int2 = (row["cosine"] for row in found["rows"])
    assert exact == pytest.approx(1)
    assert 0.99 < int8 < 1
    assert int2 < int8
    assert found["kind"] == "encoder"


def test_bench_tells_perplexity_and_time(folders, tmp_path, capsys):
    argv = ["bench", str(folders / "llama"), *SHORT, "--prompt", "12", "--generate", "20", "--rounds", "2"]
    found = told([*argv, "--json", "-", "--plot", str(tmp_path / "b.png")], capsys)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert [row["scheme"] for row in found["rows"]] == [
        *("float", "int8", "int8,activations=int8", "int4", "int4,activations=int8")
    ]
    by_eval = told(["eval", str(folders / "llama"), "--scheme", "int8", *SHORT, "--json", "-"], capsys)
    for mine, theirs in zip(found["rows"], by_eval["rows"], strict=False):
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"])
    first = found["rows"][0]
    assert (first["prefill_speed"], first["decode_speed"], first["change"]) == (1, 1, 0)
    for row in found["rows"]:
        assert 0 < row["ms_per_token"] < 10_000
        assert row["decode_speed"] == pytest.approx(first["ms_per_token"] / row["ms_per_token"])
    assert found["settings"]["generate"] == 20


def test_writing_in_turns_is_greedy_decoding(folders):
    """Chunks continue where they stopped; the figures are of the tokens that `generate` writes."""
    from rquant.evaluate.speed import Writer

    loaded = evaluate.load_pretrained(folders / "llama")
    prompt = torch.tensor([[5, 80, 31, 7]])
    writer = Writer(loaded.model, prompt)
    with torch.inference_mode():
        for _ in range(2):  # a second reading forgets the first
            writer.read()
            for count in (3, 4, 1):
                writer.write(count)
            expected = loaded.model.generate(prompt, max_new_tokens=9, min_new_tokens=9, do_sample=False)
            assert writer.tokens == expected[0, 4:].tolist()


def test_speeds_counts_turns(folders):
    model = evaluate.load_pretrained(folders / "llama").model
    found = evaluate.speeds({"a": model}, torch.tensor([[1, 2]]), 10, rounds=2, chunk=4)["a"]
    assert (len(found.prefill), len(found.decode)) == (2, 3)
    assert found.ms_per_token == 1e3 * sorted(found.decode)[1]


def test_a_twin_shares_what_stays_float(folders):
    model = evaluate.load_pretrained(folders / "llama").model
    before = copy.deepcopy(model.state_dict())
    twin = Recipe.parse("int8,exclude=lm_head").build(model)
    assert twin.model.norm.weight is model.model.norm.weight
    assert twin.lm_head.weight is model.lm_head.weight
    assert evaluate.resident_bytes(twin) < evaluate.resident_bytes(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "{}/nowhere"], "nowhere: expected a model folder with config.json"),
        (["eval", "{}/llama", "--scheme", "int3"], "scheme: expected one of"),
        (
            ["eval", "{}/llama", "--scheme", "int4,groups=3"],
            "scheme: expected type,option=value,... with options",
        ),
        (
            ["eval", "{}/llama", "--scheme", "int4", "--against", "{}/llama"],
            "--against: expected a quantized MODEL",
        ),
        (["eval", "{}/llama", "--tokens", "10000000"], "--tokens: expected at most"),
        (["eval", "{}/bert"], "an encoder is compared"),
        (["eval", "{}/llama", "--json", "{}/no/e.json"], "e.json: expected a file in a folder that is there"),
        (["eval", "{}/llama", "--text", "{}/llama/none.txt"], "none.txt"),
        (["bench", "{}/bert"], "MODEL: expected a language model"),
    ],
)
def test_mistakes_are_one_line(folders, argv, message, capsys):
    assert main([part.format(folders) for part in argv]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_counts_are_positive(folders, capsys):
    with pytest.raises(SystemExit):
        main(["bench", str(folders / "llama"), "--generate", "0"])
    assert "expected an integer >= 1, got '0'" in capsys.readouterr().err


def test_without_matplotlib_a_page_is_refused_at_once(folders, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["eval", str(folders / "llama"), "--report", "r.html"]) == 1
    assert "pip install 'rquant[viz]'" in capsys.readouterr().err


def test_a_broken_model_is_null_in_json(folders):
    model = evaluate.load_pretrained(folders / "llama").model
    model.model.norm.weight.data[:] = math.nan
    found = evaluate.language({"broken": model}, torch.ones(1, 8, dtype=torch.int64))
    assert json.loads(found.to_json())["rows"][0]["perplexity"] is None
    assert "nan" in found.table()
