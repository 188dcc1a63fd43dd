"""`torch.export`, its packages, and `torch.jit.trace`: programs that compute the same, saved, loaded and with gradients."""

import io
import os
import shutil
import subprocess
import sys

import pytest
import torch
from small_models import Tied, bert, frozen, llama
from torch import nn

import rquant
from rquant._rquant import supported_isas

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.*", "ignore:.*TorchScript.*")


def there_and_back(save, load, program):
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


def sizes(low):
    return {0: torch.export.Dim("batch", min=low, max=64), 1: torch.export.Dim("length", min=low, max=64)}


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_an_exported_program_is_saved_and_loaded(weights, activations):
    model, ids = frozen(Tied(), weights, activations), torch.arange(12).reshape(3, 4)
    program = torch.export.export(model, (ids,), dynamic_shapes=(sizes(2),))
    loaded = there_and_back(torch.export.save, torch.export.load, program)
    for run in (program, loaded, loaded.run_decompositions()):
        for batch in (ids, ids.reshape(6, 2)):
            assert torch.equal(run.module()(batch), model(batch))
    assert "rquant.linear" in str(loaded.graph_module.code)
    stored = {id(t): t.nbytes for t in [*program.state_dict.values(), *program.constants.values()]}
    kept = {id(t): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    assert sum(stored.values()) == sum(kept.values())  # packed, what is tied once


@pytest.mark.parametrize("make", [llama, bert])
def test_exported_models(make):
    model, ids = frozen(make(), "int4", "int8", group_size=16), torch.arange(12).reshape(3, 4)
    with torch.no_grad():
        program = torch.export.export(model, (ids,))
        torch.testing.assert_close(program.module()(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [Tied, llama, bert])
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_is_saved_and_loaded(make, grad):
    model, ids = frozen(make(), "int4", "int8", group_size=16), torch.arange(12).reshape(3, 4)
    with torch.set_grad_enabled(grad):
        trace = torch.jit.trace(model, ids)
        loaded = there_and_back(torch.jit.save, torch.jit.load, trace)
        for run in (trace, loaded):
            torch.testing.assert_close(run(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", ["export", "trace", "trace without gradients"])
@pytest.mark.parametrize("activations", [None, "int8"])
def test_programs_have_the_gradient_of_their_input(program, activations):
    layers = (nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4, bias=False))
    model, x = frozen(nn.Sequential(*layers), "int4", activations), torch.randn(3, 32)
    if program == "export":
        run = torch.export.export(model, (x.clone().requires_grad_(),)).module()
    else:
        with torch.set_grad_enabled(program == "trace"):
            run = torch.jit.trace(model, x)
    grads = []
    for function in (model, run):
        there = x.clone().requires_grad_()
        function(there).square().sum().backward()
        grads.append(there.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.skipif(len(supported_isas()) < 2, reason="one instruction set only")
def test_panels_of_another_instruction_set_are_not_misread(tmp_path):
    """A program holds this machine's panels, which say what they are: a lesser machine computes with them as they are."""
    layer, x = rquant.Linear.from_float(nn.Linear(70, 33), "int4", "int8"), torch.randn(3, 70)
    with torch.no_grad():
        torch.export.save(torch.export.export(nn.Sequential(layer), (x,)), tmp_path / "here.pt2")
    torch.save((x, layer(x).detach()), tmp_path / "xy.pt")
    script = f"""
import torch
import rquant.nn  # makes the ops known
x, y = torch.load({str(tmp_path / "xy.pt")!r})
program = torch.export.load({str(tmp_path / "here.pt2")!r}).module()
assert torch.equal(program(x), y)
"""
    env = {**os.environ, "RQUANT_ISA": "portable"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles what it packages")
def test_a_package_runs_without_python(tmp_path):
    """A calibrated network whose tail is not, with weights of several types, and of any batch."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1)
    )
    tail = nn.Sequential(nn.Flatten(), nn.Linear(8 * 12 * 12, 8), nn.ReLU(), nn.Linear(8, 4))
    model, x = nn.Sequential(body, tail).eval(), torch.randn(4, 3, 16, 16)
    rquant.quantize(model, "int8", "int8", rules=[("1.3", {"weights": "int4", "activations": None})])
    with torch.no_grad(), rquant.Calibration():
        body(x)
    rquant.freeze(model)
    with torch.no_grad():
        program = torch.export.export(
            model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)
        )
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        run = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
        for batch in (x, x[:3]):
            assert torch.equal(run(batch), model(batch))
