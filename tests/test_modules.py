"""Quantized layers as torch modules: copies, pickles, dtypes, devices, ties, hooks, threads, workers."""

import copy
import io
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import rquant
from rquant import _rquant
from rquant.nn import PackedWeight

SCHEMES = [("int8", None), ("int4", "int8"), ("int2", None)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 33), nn.GELU(), nn.Linear(33, 5, bias=False))


def frozen(weights="int4", activations=None, model=None):
    model = model or network()
    rquant.quantize(model, weights, activations)
    rquant.freeze(model)
    return model.eval()


class Tied(nn.Module):
    """An embedding and a head with one weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


def one_weight(model):
    """The tensors of both layers, once they are seen to be the same."""
    first, second = model.embed.held, model.head.held
    assert first.keys() == second.keys()
    assert all(first[name] is second[name] for name in first)
    return first


@pytest.fixture
def x():
    return torch.randn(4, 70, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("weights", "activations"), SCHEMES)
def test_copies_and_pickles_compute_the_same(weights, activations, x):
    model = frozen(weights, activations)
    y = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(twin(x), y)
        assert twin[0].held["_panels"].data_ptr() != model[0].held["_panels"].data_ptr()
        assert twin[0].scheme == model[0].scheme


def test_a_pickle_from_another_instruction_set_is_repacked(isa, tmp_path, x):
    model = frozen("int4", "int8", model=Tied())
    ids = torch.arange(40)
    torch.save((model, ids, model(ids)), tmp_path / "here.pt")
    script = f"""
import sys, torch, rquant
from rquant import _native
sys.path.insert(0, {str(Path(__file__).parent)!r})  # where `Tied` is
model, ids, y = torch.load({str(tmp_path / "here.pt")!r}, weights_only=False)
assert torch.equal(model(ids), y)
assert model.embed.held["_panels"] is model.head.held["_panels"]
assert _native.is_native(model.head.held["_panels"])
torch.save((model, ids, y), {str(tmp_path / "there.pt")!r})
"""
    isa(script)
    model, ids, y = torch.load(tmp_path / "there.pt", weights_only=False)
    assert torch.equal(model(ids), y)


@pytest.mark.parametrize(("weights", "activations"), SCHEMES)
def test_state_dict_goes_round(weights, activations, x):
    model = frozen(weights, activations)
    state = model.state_dict()
    assert set(state) - {"0.weight_zero_point", "2.weight_zero_point"} == {
        "0.bias", "0.weight_packed", "0.weight_scale", "2.weight_packed", "2.weight_scale",
    }  # fmt: skip
    assert all(type(tensor) is torch.Tensor for tensor in state.values())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    torch.manual_seed(9)
    other = frozen(
        weights, activations, nn.Sequential(nn.Linear(70, 33), nn.GELU(), nn.Linear(33, 5, bias=False))
    )
    panels = other[0].held["_panels"]
    assert other.load_state_dict(state).missing_keys == []
    assert torch.equal(other(x), model(x))
    assert other[0].held["_panels"] is panels  # in place


def test_packed_state_freezes_an_unfrozen_layer(x):
    model, other = frozen(), network()
    rquant.quantize(other, "int4")
    other.load_state_dict(model.state_dict())
    assert other[0].frozen
    assert torch.equal(other(x), model(x))


def test_float_state_loads_into_an_unfrozen_layer(x):
    source, other = network(), network()
    rquant.quantize(other, "int4")
    other.load_state_dict(source.state_dict())
    assert torch.equal(other[0].weight, source[0].weight)


def break_shape(state):
    state["0.weight_packed"] = state["0.weight_packed"][:, :-4]


def break_dtype(state):
    state["0.weight_scale"] = state["0.weight_scale"].double()


def break_scale(value):
    def change(state):
        state["0.weight_scale"][3, 1] = value

    return change


def break_zero_point(state):
    state["0.weight_zero_point"][2, 0] = 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_shape, r"0.weight_packed: expected shape \(33, 36\), got \(33, 32\)"),
        (break_dtype, "0.weight_scale: expected torch.float16 or torch.float32, got torch.float64"),
        (break_scale(torch.nan), r"0.weight_scale: .*nan at \[3, 1\]"),
        (break_scale(0.0), r"0.weight_scale: .*0.0 at \[3, 1\]"),
        (break_scale(-1.0), r"0.weight_scale: .*-1.0 at \[3, 1\]"),
        (break_zero_point, r"0.weight_zero_point: .*from 0 to 15, got 16 at \[2, 0\]"),
        (lambda state: state.pop("0.weight_scale"), "Missing.*0.weight_scale"),
        (lambda state: state.pop("0.weight_zero_point"), "Missing.*0.weight_zero_point"),
        (lambda state: state.update({"0.weight": torch.zeros(33, 70)}), "Unexpected.*0.weight"),
    ],
)
def test_damaged_state_is_named_and_changes_nothing(damage, message, x):
    model = frozen()
    y, state = model(x), model.state_dict()
    damage(state)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_to_dtype_changes_the_compute_dtype_only(dtype, x):
    model = frozen()
    before = model[0].canonical()
    model.to(dtype)
    assert model[0].weight.dtype == model[0].bias.dtype == model(x.to(dtype)).dtype == dtype
    after = model[0].canonical()
    assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True))
    assert model.float()[0].weight.dtype == torch.float32
    assert model.double()[0].weight.dequantize().dtype == torch.float64


def test_to_meta_holds_canonical_shapes(x):
    model = frozen().to("meta")
    assert model[0].held.keys() == {"weight_packed", "weight_scale", "weight_zero_point"}
    assert model[0].weight.device.type == "meta"
    assert model(x.to("meta")).shape == (4, 5)
    assert model.state_dict()["0.weight_packed"].shape == (33, 36)


@pytest.mark.parametrize("assign", [True, False])
def test_from_meta_by_a_state_dict(assign):
    model = frozen(model=Tied())
    ids, state = torch.arange(40), model.state_dict()
    skeleton = copy.deepcopy(model).to("meta")
    if not assign:
        skeleton.to_empty(device="cpu")
    skeleton.load_state_dict(state, assign=assign)
    assert torch.equal(skeleton(ids), model(ids))
    assert one_weight(skeleton).keys() == {"_panels"}


def test_share_memory_shares_the_panels(x):
    model = frozen()
    y = model(x)
    model.share_memory()
    assert model[0].held["_panels"].is_shared()
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_tied_weights_stay_tied(weights):
    model, ids = Tied(), torch.arange(40)
    rquant.quantize(model, weights)
    assert isinstance(model.embed, rquant.Embedding)
    assert model.embed.weight is model.head.weight
    y = model(ids)
    rquant.freeze(model)
    assert torch.equal(model(ids), y)
    one_weight(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).to("meta")):
        one_weight(twin)
    model.load_state_dict(model.state_dict())
    one_weight(model)
    assert torch.equal(model(ids), y)
    assert not any(p.numel() for p in model.parameters())


def test_a_frozen_weight_can_be_tied_to_another():
    model = Tied()
    model.head.weight = nn.Parameter(torch.randn(40, 16))
    rquant.quantize(model, include="*")
    rquant.freeze(model)
    model.head.weight = model.embed.weight
    one_weight(model)
    assert torch.equal(model.head.weight.dequantize(), model.embed.weight.dequantize())
    with pytest.raises(AttributeError, match="weight: frozen"):
        model.head.weight = nn.Parameter(torch.zeros(40, 16))


def test_a_trainable_layer_can_be_tied_to_a_frozen_one():
    first, second = frozen(model=Tied()), Tied()
    rquant.quantize(second, "int8")
    second.head.weight = first.get_parameter("embed.weight")
    assert second.head.held["_panels"] is first.embed.held["_panels"]
    assert second.head.scheme == first.embed.scheme
    assert not second.embed.frozen


def test_parameters_tell_dtype_and_device_when_all_is_packed():
    model = frozen(model=Tied())
    assert sum(p.numel() for p in model.parameters()) == 0
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in model.half().parameters()} == {torch.float16}
    assert {p.device.type for p in model.to("meta").parameters()} == {"meta"}
    assert not any("like" in name for name in model.state_dict())
    assert not any(p.requires_grad for p in model.parameters())


def test_hooks_come_along_and_their_handles_remove_them(x):
    model, seen = network(), []
    handle = model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[2].register_forward_pre_hook(lambda *_: seen.append("pre"))
    frozen(model=model)(x)
    assert seen == ["forward", "pre"]
    handle.remove()
    model(x)
    assert seen == ["forward", "pre", "pre"]


def test_the_weight_view_reads_as_a_float_tensor():
    layer = frozen()[0]
    view, plain = layer.weight, layer.weight.dequantize()
    assert isinstance(view, torch.Tensor)
    assert (view.shape, view.dtype, view.device.type) == ((33, 70), torch.float32, "cpu")
    assert view.is_floating_point()
    assert torch.equal(view + 0, plain)
    assert torch.equal(view.T @ torch.ones(33), plain.T @ torch.ones(33))
    assert torch.equal(
        nn.functional.linear(torch.ones(2, 70), view), nn.functional.linear(torch.ones(2, 70), plain)
    )
    assert type(view[0]) is type(copy.deepcopy(view)) is type(view.to(torch.float16)) is torch.Tensor
    assert torch.equal(pickle.loads(pickle.dumps(view)), plain)
    assert "qint4" in repr(view)
    for write in (
        lambda: view.zero_(),
        lambda: view.data.copy_(plain),
        lambda: view.detach().mul_(2),
        lambda: torch.add(plain, 1, out=view),
        lambda: setattr(view, "data", plain),
    ):
        with pytest.raises(TypeError, match="read-only"):
            write()
    assert torch.equal(view.dequantize(), plain)


def test_four_threads_call_one_module(x, set_num_threads):
    model = frozen("int4", "int8")
    inputs = [torch.randn(m, 70) for m in (1, 3, 17, 40)]
    want = [model(i) for i in inputs]
    set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            got = list(pool.map(model, inputs))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


class Rows(torch.utils.data.Dataset):
    """Items that a frozen model computes, with the threads it was given."""

    def __init__(self, model, x):
        self.model, self.x = model, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        with torch.no_grad():
            return self.model(self.x[i : i + 1])[0], rquant.get_num_threads()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_dataloader_worker(x):
    model = frozen("int8", "int8")
    with torch.no_grad():
        want = torch.cat([model(row[None]) for row in x])
    loader = torch.utils.data.DataLoader(Rows(model, x), 2, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    assert torch.equal(torch.cat([rows for rows, _ in batches]), want)
    assert all((threads == 1).all() for _, threads in batches)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_canonical_storage_computes_the_same(activations, x):
    """What a device without kernels holds, here on the CPU."""
    model, embedding = frozen("int4", activations), rquant.Embedding.from_float(nn.Embedding(9, 70), "int4")
    layer, upstream = model[0], torch.randn(4, 33)
    x.requires_grad_()
    y = layer(x)
    y.backward(upstream)
    want, x.grad = x.grad, None
    bias, layer.bias.grad = layer.bias.grad, None
    rows = embedding(torch.arange(9))
    for module in (layer, embedding):
        tensors = zip(
            ("weight_packed", "weight_scale", "weight_zero_point"), module.canonical(), strict=False
        )
        module.hold(dict(tensors))
        assert "_panels" not in module.held
    assert torch.equal(layer(x), y)
    layer(x).backward(upstream)
    torch.testing.assert_close(x.grad, want)
    torch.testing.assert_close(layer.bias.grad, bias)
    assert torch.equal(embedding(torch.arange(9)), rows)
    assert torch.equal(model.state_dict()["0.weight_packed"], layer.held["weight_packed"])


def test_one_copy_in_memory():
    model = frozen("int8", model=nn.Sequential(nn.Linear(384, 256, bias=False)))
    kept = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert kept * 8 / (384 * 256) <= 8.2  # of each channel also a scale and the sum of its codes
    for name, group, most in (("int4", 128, 4.3), ("int2", 32, 2.8)):
        layer = rquant.Linear.from_float(nn.Linear(384, 256, bias=False), name, group_size=group)
        assert sum(t.nbytes for t in layer.buffers()) * 8 / (384 * 256) <= most


def test_printing_names_the_scheme():
    model = network()
    rquant.quantize(model, "int4", "int8")
    assert "qint4 affine group 64, unfrozen, activations=qint8" in repr(model)
    rquant.freeze(model)
    assert "unfrozen" not in repr(model)
    assert all(isinstance(m, PackedWeight) for m in (model[0], model[2]))
    assert _rquant.isa() in rquant.backend_info().values()
