"""Tensor parallelism and sharded parameters: two gloo processes compute what one does."""

import copy
import pickle

import pytest
import torch
from observed import images, net
from torch import nn

pytest.importorskip("torch.distributed.tensor", reason="torch 2.5 or later")

from ranks import Pair
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor import parallel as torch_parallel
from torch.distributed.tensor.parallel import parallelize_module

import rquant
from rquant.distributed import ColwiseParallel, RowwiseParallel

SCHEMES = [
    (weights, activations, group)
    for weights, group in (("int8", None), ("int8", 32), ("int4", 16), ("int4", -1), ("int2", 32))
    for activations in (None, "int8")
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


class Block(nn.Module):
    """An MLP between float layers, its names as language models have them."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(96), nn.Linear(96, 128), nn.Linear(128, 96)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def model_of(weights="int4", activations="int8", group=32, freeze=True):
    torch.manual_seed(0)
    model = nn.ModuleDict({"block": Block(), "head": nn.Linear(96, 64)})
    rquant.quantize(model, weights, activations, group_size=group)
    if freeze:
        rquant.freeze(model)
    return model


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def columns(mesh, scheme):
    head, x = model_of(*scheme)["head"], inputs(5, 96)
    want = head(x).detach()
    parallelize_module(head, mesh, ColwiseParallel())
    part = head(x).detach()
    whole = ColwiseParallel(output_layouts=Replicate())
    again = parallelize_module(model_of(*scheme)["head"], mesh, whole)(x).detach()
    narrow = head(x.to(torch.bfloat16)).dtype
    return part, again, want, narrow, repr(head)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_columns_are_those_of_one_process(pair, scheme):
    (first, whole, want, narrow, shown), (second, *_) = pair(columns, scheme)
    if scheme[1]:
        assert torch.equal(torch.cat([first, second], -1), want)
        assert torch.equal(whole, want)
    torch.testing.assert_close(whole, want, rtol=1e-5, atol=1e-5)
    assert narrow == torch.bfloat16
    assert "in_features=96, out_features=32" in shown
    assert "rank 0 of 2" in shown


def rows(mesh, scheme):
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        layer, x = model_of(*scheme)["block"].down, inputs(2, 5, 128).to(dtype)
        x[0, 0, 3], x[0, 1, 127], x[0, 2] = torch.nan, 60.0, 0.0
        want = layer(x).detach()
        parallelize_module(layer, mesh, RowwiseParallel())
        results.append((want, layer(x.chunk(2, -1)[mesh.get_local_rank()]).detach(), layer.in_features))
    return results


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_are_near_one_process(pair, scheme):
    first, second = pair(rows, scheme)
    for (want, got, size), (_, other, _) in zip(first, second, strict=True):
        assert size == 64
        assert got.dtype == want.dtype
        assert torch.equal(got.nan_to_num(), other.nan_to_num())
        assert got[0, 0].isnan().all()
        assert not got[0, 1:].isnan().any()
        close = 1e-5 if want.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(got, want, rtol=close, atol=close, equal_nan=True)


def plan():
    return {"block.up": ColwiseParallel(), "block.down": RowwiseParallel(), "head": ColwiseParallel()}


def gradients(mesh):
    results = []
    for shard in (False, True):
        model, x = model_of(), inputs(3, 96).requires_grad_()
        if shard:
            parallelize_module(model, mesh, plan() | {"head": ColwiseParallel(output_layouts=Replicate())})
        model["head"](model["block"](x)).square().sum().backward()
        block = model["block"]
        results.append(
            (
                x.grad,
                block.norm.weight.grad,
                block.down.bias.grad,
                block.up.bias.grad,
                model["head"].bias.grad,
            )
        )
    return results


def test_gradients_are_those_of_one_process(pair):
    for rank, (want, got) in enumerate(pair(gradients)):
        want = [*want[:3], *(grad.chunk(2)[rank] for grad in want[3:])]
        torch.testing.assert_close(list(got), want, rtol=1e-5, atol=1e-5)


def mixed(mesh):
    """A float layer and torch's own styles beside ours; DTensors in and out; sequence parallel."""
    torch.manual_seed(0)
    model, x = Block(), inputs(2, 6, 96)
    rquant.quantize(model, "int8", "int8", include="down")
    rquant.freeze(model)
    want = model(x).detach()
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    got = model(x).detach()
    cut = model_of()
    expected = cut["block"](x).detach()
    sequence = {
        "block.norm": torch_parallel.SequenceParallel(use_local_output=True),
        "block.up": ColwiseParallel(input_layouts=Shard(1)),
        "block.down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    parallelize_module(cut, mesh, sequence)
    block, part = cut["block"], x.chunk(2, 1)[mesh.get_local_rank()]
    y = block.down(torch.relu(block.up(block.norm(part))))
    assert isinstance(y, DTensor)
    assert y.placements == (Shard(1),)
    return want, got, expected, (part + y.to_local()).detach()


def test_beside_float_layers_and_torch_s_own_styles(pair):
    (want, got, expected, first), (*_, second) = pair(mixed)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([first, second], 1), expected, rtol=1e-5, atol=1e-5)


def refused(mesh):
    errors = []
    for layer, style in (
        (rquant.Linear(64, 64), RowwiseParallel()),
        (rquant.Linear.from_float(nn.Linear(64, 33)), ColwiseParallel()),
        (rquant.Linear.from_float(nn.Linear(33, 64)), RowwiseParallel()),
        (rquant.Linear.from_float(nn.Linear(96, 64), "int4", group_size=32), RowwiseParallel()),
        (rquant.Linear.from_float(nn.Linear(70, 64), "int2", group_size=-1), RowwiseParallel()),
        (rquant.Embedding.from_float(nn.Embedding(8, 64)), ColwiseParallel()),
    ):
        before = repr(layer)
        try:
            parallelize_module(layer, mesh, style)
        except (TypeError, ValueError) as error:
            errors.append(f"{type(error).__name__}: {error}")
        assert repr(layer) == before
    return errors


def test_what_cannot_be_cut_is_named(pair):
    errors, _ = pair(refused)
    assert errors == [
        "ValueError: module: expected a frozen layer, got an unfrozen one; call rquant.freeze(model) before parallelize_module",
        "ValueError: out_features: expected a multiple of 2 = 2 ranks, got 33",
        "ValueError: in_features: expected a multiple of 2 = 2 ranks, got 33",
        "ValueError: in_features: expected a multiple of 64 = 2 ranks x 32 (groups of 32, 2 codes a byte), got 96",
        "ValueError: in_features: expected a multiple of 8 = 2 ranks x 4 (4 codes a byte), got 70",
        "TypeError: module: expected rquant.Linear or a float layer, got Embedding, which is not cut",
    ]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(64, 96), Block(), nn.Linear(96, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.block(self.embed(ids)))


def loaded(mesh, path):
    packed, hold = [], rquant.nn.storage.hold

    def watched(q, device, *rest):
        packed.append((q.codes.device.type, tuple(q.codes.shape)))
        return hold(q, device, *rest)

    rquant.nn.storage.hold = watched
    try:
        with torch.device("meta"):
            model = Tied()
        rquant.distributed.load(path, model, mesh, TIED_PLAN)
    finally:
        rquant.nn.storage.hold = hold
    whole = parallelize_module(rquant.load(path, Tied()), mesh, TIED_PLAN)
    ids = torch.arange(64)
    return packed, model(ids).detach(), whole(ids).detach()


TIED_PLAN = {
    "block.up": ColwiseParallel(),
    "block.down": RowwiseParallel(),
    "head": ColwiseParallel(output_layouts=Replicate()),
}


def test_each_rank_loads_its_part(pair, tmp_path):
    torch.manual_seed(0)
    model = Tied()
    rquant.quantize(model, "int4", "int8", group_size=32)
    rquant.freeze(model)
    rquant.save(model, tmp_path / "m.safetensors")
    for packed, got, whole in pair(loaded, tmp_path / "m.safetensors"):
        assert torch.equal(got, whole)
        torch.testing.assert_close(got, model(torch.arange(64)), rtol=1e-5, atol=1e-5)
        on_cpu = sorted(shape for device, shape in packed if device == "cpu")
        assert on_cpu == sorted(
            [(64, 48), (96, 32), (64, 48), (32, 48)]
        )  # up, down; the tied head, whole and cut


def kept(mesh):
    layer, x = model_of()["block"].up, inputs(3, 96)
    parallelize_module(layer, mesh, ColwiseParallel())
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
    state = layer.state_dict()
    layer.load_state_dict(state)
    assert torch.equal(layer(x), y)
    with pytest.raises(ValueError, match="ColwiseLinear"):
        rquant.save(nn.Sequential(layer), "never.safetensors")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_a_part_is_copied_and_has_a_state_but_is_no_model_to_save(pair):
    for shapes in pair(kept):
        assert shapes == {
            "bias": (64,), "weight_packed": (64, 48), "weight_scale": (64, 3), "weight_zero_point": (64, 3)
        }  # fmt: skip


def compiled(mesh):
    model = model_of()
    parallelize_module(model, mesh, plan())
    x = inputs(3, 96)
    with torch.no_grad():
        return model["block"](x), torch.compile(model["block"], fullgraph=True, backend="aot_eager")(x)


def test_parts_compile(pair):
    for want, got in pair(compiled):
        assert torch.equal(got, want)


def sharded_parameters(mesh):
    """FSDP in both forms and DDP leave packed weights whole, and parameters where the layers find them."""
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    def each(model):
        for layer in (model.up, model.norm, model.down, model):
            fully_shard(layer, mesh=mesh)
        return model

    def flat(own):
        return lambda m: FullyShardedDataParallel(m, use_orig_params=own, device_id=torch.device("cpu"))

    equal = {}
    for freeze in (True, False):
        for name, wrap in {
            "fully_shard": each,
            "root": lambda m: fully_shard(m, mesh=mesh),
            "FSDP": flat(True),
            "FSDP, flat parameters": flat(False),
            "DDP": nn.parallel.DistributedDataParallel,
        }.items():
            if freeze and "flat" in name:
                continue  # takes parameters with a gradient only; use_orig_params=True is how FSDP takes others
            x, model = inputs(3, 96), model_of(freeze=freeze)["block"]
            if freeze and name == "FSDP, flat parameters":
                # they must agree on requires_grad, and what tells a frozen layer's dtype needs none
                model.requires_grad_(False)
                x.requires_grad_()
            want = model(x).detach()
            model = wrap(model)
            got = model(x)
            got.sum().backward()
            equal[name, freeze] = torch.equal(got.detach(), want)
            if freeze and name == "FSDP":
                assert model.module.up.weight.dtype == torch.float32
    return equal


def test_sharded_parameters(pair):
    for equal in pair(sharded_parameters):
        assert all(equal.values()), equal


def calibrated(method, batches, reduce):
    model = net()
    with rquant.Calibration(method) as calibration:
        for x in batches:
            model(x)
    if reduce:
        calibration.all_reduce()
    layers = {
        name: layer.qparams("input") for name, layer in model.named_modules() if hasattr(layer, "qparams")
    }
    return {name: (pair[0].item(), pair[1].item()) for name, pair in layers.items() if pair is not None}


def share(mesh, method):
    rank = mesh.get_local_rank()
    return calibrated(method, images(4)[2 * rank : 2 * rank + 2], reduce=True)


@pytest.mark.parametrize("method", ["moving_average", "mse"])
def test_ranks_that_saw_other_samples_agree_on_scales(pair, method):
    one, other = pair(share, method)
    want = calibrated(method, images(4), reduce=False)
    assert one == other
    for name, (scale, zero) in want.items():
        assert one[name] == (pytest.approx(scale, rel=1e-6), zero)
