"""The plug-in registers in either order of imports, costs nothing unused, and a program without it is warned."""

import subprocess
import sys

import pytest
import torch

import rquant

transformers = pytest.importorskip("transformers")

from hf_models import ARCHITECTURES, CAUSAL  # noqa: E402


def run(script, *arguments):
    """What a new process prints, and its errors."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A saved quantized model."""
    path = tmp_path_factory.mktemp("saved")
    ARCHITECTURES["llama"].build().save_pretrained(path / "float")
    CAUSAL.from_pretrained(path / "float", quantization_config=rquant.RQuantConfig()).save_pretrained(
        path / "q"
    )
    return str(path / "q")


@pytest.mark.parametrize(
    "imports",
    [
        "import rquant, transformers",
        "import transformers; transformers.AutoModelForCausalLM; import rquant",
    ],
    ids=["rquant first", "transformers first"],
)
def test_a_saved_model_loads_in_either_order_of_imports(imports, directory):
    script = (
        f"import sys; {imports}\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(type(model.lm_head).__module__, model.lm_head.frozen)"
    )
    out, _ = run(script, directory)
    assert out == "rquant.nn.linear True\n"


def test_without_rquant_transformers_warns(directory, monkeypatch, transformers_log):
    from transformers.quantizers import auto

    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "rquant")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "rquant")
    model = CAUSAL.from_pretrained(directory)
    assert type(model.lm_head) is torch.nn.Linear
    assert "Unknown quantization type, got rquant" in transformers_log.text
    assert "lm_head.weight" in transformers_log.text  # among what is missing


def test_importing_rquant_imports_nothing_large():
    out, _ = run("import sys, rquant; print([n for n in ('torch', 'transformers') if n in sys.modules])")
    assert out == "[]\n"


def test_without_transformers_the_name_says_what_it_needs():
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "import rquant\n"
        "try: rquant.RQuantConfig\n"
        "except ImportError as e: print(e)\n"
    )
    out, _ = run(script)
    assert "rquant.RQuantConfig needs transformers >= 4.57" in out


def test_reloading_the_plug_in_registers_once():
    import importlib

    import rquant.integrations.transformers as plug_in

    assert importlib.reload(plug_in).RQuantConfig is rquant.RQuantConfig
