"""Training with the rounding in place: what is trained is what is deployed, to the last bit."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import rquant
from rquant import qat
from rquant.nn import storage


class Block(nn.Module):
    """Conv-BN-ReLU-Conv-BN-Add, pooled, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x):
        x = functional.relu(self.bn1(self.first(x)))
        x = functional.relu(self.bn2(self.second(x)) + x)
        return self.last(functional.max_pool2d(x, 2).flatten(1))


LAYERS = ("first", "second", "last")


@pytest.fixture
def x():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def block(x, weights="int4", fold=True, **options):
    torch.manual_seed(0)
    model = Block()
    with torch.no_grad():  # statistics that are not the ones at the start
        for _ in range(3):
            model.train()(x)
    rquant.quantize(model.eval(), weights, activations="int8", **options)
    if fold:
        assert not any(row.reason for row in qat.fold_bn(model, x))
        with rquant.Calibration():
            model(x)
    return model


def train(model, x, steps=5, rate=0.01, optimizer=torch.optim.Adam):
    optimizer, losses = optimizer(model.parameters(), rate), []
    target = torch.arange(len(x)) % 5
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


WAYS = {
    "learned": {},
    "tensor": {"per_tensor": True},
    "observed": {"activations": "observed"},
    "rounded": {"weights": "rounded", "activations": "fixed"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ("int8", {}),
        ("int4", {}),
        ("int4", {"group_size": 5, "symmetric": True}),
        ("int2", {"group_size": -1}),
    ],
    ids=["int8", "int4", "int4 groups of 5", "int2 channels"],
)
def test_pain_19_frozen_is_what_was_evaluated(x, weights, options, way):
    model = block(x, weights, **options)
    qat.prepare(model, **WAYS[way])
    before = model(x)
    losses = train(model, x, 12)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        want, codes, scales = model(x), {}, {}
        assert not torch.equal(want, before)
        for name in LAYERS:
            layer = getattr(model, name)
            q = storage.quantize(layer.float_matrix(), layer.scheme)
            codes[name] = q.codes
            scales[name] = (
                layer.weight_range.stored() if "weight_range" in layer._modules else q.scale,
                layer.qparams("input"),
            )
    rquant.freeze(model)
    assert torch.equal(model(x), want)
    for name in LAYERS:
        layer = getattr(model, name)
        q, (scale, (in_scale, in_zero)) = layer.canonical(), scales[name]
        assert torch.equal(q.codes, codes[name])
        assert torch.equal(q.scale, scale)
        assert torch.equal(layer.input_scale, in_scale)
        assert torch.equal(layer.input_zero_point, in_zero)
        assert not layer._modules
    assert isinstance(model.bn1, nn.Identity)
    assert not [p for name, p in model.named_parameters() if "log_scale" in name]
    assert torch.equal(copy.deepcopy(model)(x), want)


def test_every_parameter_gets_a_gradient(x):
    model = block(x)
    new = qat.prepare(model)
    assert len(new) == 6
    assert {id(p) for p in new} <= {id(p) for p in model.parameters()}
    model.train()
    functional.cross_entropy(model(x), torch.arange(16) % 5).backward()
    for name, parameter in model.named_parameters():
        # the bias before a BatchNorm has none to speak of
        assert name == "second.bias" or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_scales_learn_and_stay_positive(x, optimizer):
    model = block(x, "int8")
    scales = qat.prepare(model)
    before = [p.detach().clone() for p in scales]
    train(model, x, 3, 0.5, optimizer)
    assert all(not torch.equal(p, old) for p, old in zip(scales, before, strict=True))
    for name in LAYERS:
        assert (getattr(model, name).weight_range.stored() > 0).all()
        assert (getattr(model, name).input_range.scale > 0).all()


def test_dynamic_layers_learn_their_weights_scales(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5))
    rquant.quantize(model, "int2", activations="int8")
    assert len(qat.prepare(model)) == 2
    losses = train(model, x, 30)
    assert losses[-1] < 0.5 * losses[0]
    want = model(x)
    rquant.freeze(model)
    assert torch.equal(model(x), want)
    assert "lsq" in repr(model[1])


def test_parts_of_other_modules_learn_too():
    """Of an LSTM, attention, an embedding: each weight's scales get a gradient, and outputs outlive `freeze`."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

        def forward(self, ids):
            x, _ = self.rnn(self.embed(ids))
            return self.head((x + self.attention(x, x, x)[0]).mean(1))

    torch.manual_seed(0)
    model, ids = Words(), torch.randint(20, (16, 6))
    rquant.quantize(model, "int2", activations="int8", include="*")
    scales = qat.prepare(model)
    assert len(scales) == 8
    train(model, ids, 2)
    assert all(p.grad.abs().max() > 0 for p in scales)
    with torch.no_grad():
        want = model(ids)
        rquant.freeze(model)
        assert torch.equal(model(ids), want)


@pytest.mark.parametrize("way", WAYS)
def test_layer_norms_among_them(way):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 5))
    x = torch.randn(16, 16)
    rquant.quantize(model, "int4", activations="int8", include="*")
    with rquant.Calibration():
        model(x)
    qat.prepare(model, **WAYS[way])
    train(model, x, 10)
    with torch.no_grad():
        want = model(x)
        rquant.freeze(model)
        assert torch.equal(model(x), want)
    assert not model[1]._modules


def test_observers_follow_the_batches_until_frozen(x):
    model = block(x)
    qat.prepare(model, activations="observed", observer=lambda: rquant.observers.MovingAverage(0.75))
    place = model.first.input_range
    scale, zero = place.qparams()
    lo, hi = ((edge - zero.item()) * scale.item() for edge in (-127, 127))
    model.train()
    for factor in (2.0, 3.0):
        model(x * factor)
        lo += 0.25 * (factor * x.min().item() - lo)
        hi += 0.25 * (factor * x.max().item() - hi)
        assert place.scale.item() == pytest.approx((hi - lo) / 254, rel=1e-5)
    model.eval()(x * 9)
    qat.freeze_observers(model)
    model.train()(x * 9)
    assert place.scale.item() == pytest.approx((hi - lo) / 254, rel=1e-5)
    other = block(x)
    qat.prepare(other, activations="observed", observer=lambda: rquant.observers.MovingAverage(0.75))
    other.load_state_dict(model.state_dict())  # whose observers go on from there
    for one in (model, other):
        qat.freeze_observers(one, False)
        one.train()(x * 9)
    assert place.scale.item() > 1.2 * (hi - lo) / 254
    assert torch.equal(other.first.input_range.scale, place.scale)


def test_batch_norm_trains_inside_its_layer(x):
    """By plain torch: the weight rounded as folded, the product scaled back, normalized by the batch."""
    model = block(x, "int8")
    layer, x = model.second, torch.randn(16, 8, 8, 8)
    inner, plain = layer.batch_norm, copy.deepcopy(layer.batch_norm.norm)
    factor = plain.weight / torch.sqrt(plain.running_var + plain.eps)
    folded = layer.weight * factor.reshape(-1, 1, 1, 1)
    q = rquant.quantize_tensor(folded.permute(0, 2, 3, 1).flatten(1), "int8", axis=0).dequantize()
    rounded = q.unflatten(1, (3, 3, 8)).permute(0, 3, 1, 2) / factor.reshape(-1, 1, 1, 1)
    scale, zero = layer.qparams("input")
    seen = ((x / scale).round() + zero).clamp(-127, 127).sub(zero) * scale
    want = plain.train()(functional.conv2d(seen, rounded, layer.bias, padding=1))
    layer.flow = False
    model.train()
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inner.norm.running_var, plain.running_var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inner.norm.running_mean, plain.running_mean, rtol=1e-4, atol=1e-5)

    qat.freeze_bn_stats(model)
    model.train()
    kept, training = inner.norm.running_mean.clone(), layer(x)
    assert torch.equal(inner.norm.running_mean, kept)
    layer.eval()
    torch.testing.assert_close(layer(x), training, rtol=1e-4, atol=1e-4)
    qat.freeze_bn_stats(model, False)
    model.train()(torch.randn(2, 3, 8, 8))
    assert not torch.equal(inner.norm.running_mean, kept)


def test_batch_norm_of_a_linear_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
    x = torch.randn(32, 6)
    with torch.no_grad():
        model(3 * x + 1)
    want = model.eval()(x)
    rquant.quantize(model, "int8", activations="int8")
    qat.fold_bn(model, x)
    assert functional.cosine_similarity(model(x), want).min() > 0.99
    with rquant.Calibration():
        model(x)
    assert functional.cosine_similarity(model(x), want).min() > 0.99
    train(model, x)
    with torch.no_grad():
        want = model(x)
        rquant.freeze(model)
        assert torch.equal(model(x), want)


def test_a_channel_whose_gamma_is_nought(x):
    torch.manual_seed(0)
    model = Block()
    with torch.no_grad():
        model.bn2.weight[::2] = 0.0
    rquant.quantize(model.eval(), "int8", activations="int8")
    qat.fold_bn(model, x)
    with rquant.Calibration():
        model(x)
    train(model, x, 2)
    assert all(p.isfinite().all() for p in model.parameters())
    want = model(x)
    rquant.freeze(model)
    assert torch.equal(model(x), want)


def test_fold_bn_says_what_stays(x):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    rquant.quantize(model, "int8", exclude="3")
    rows = qat.fold_bn(model.eval(), x)
    assert [(row.name, row.layer) for row in rows] == [("0", None), ("2", "1"), ("4", "3")]
    assert [bool(row.reason) for row in rows] == [True, False, True]
    assert "not quantized" in rows[2].reason
    assert isinstance(model[1].batch_norm, qat.InnerBatchNorm)
    with pytest.raises(ValueError, match="args: expected sample inputs"):
        qat.fold_bn(model)


def test_copies_pickles_and_state_dicts_train_on(x):
    model = block(x)
    qat.prepare(model)
    train(model, x)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
        assert other.first.scheme.optimizer is other.first.weight_range is not model.first.weight_range
    other = block(x)
    qat.prepare(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), want)
    model.half()
    assert model.first.weight_range.log_scale.dtype == torch.float32
    assert model(x.half()).dtype == torch.float16


def test_saved_and_loaded_into_a_skeleton_that_has_its_batch_norms(x, tmp_path):
    model = block(x)
    qat.prepare(model)
    train(model, x)
    rquant.freeze(model)
    want = model(x)
    rquant.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        skeleton, other = Block(), Block()
    rquant.load(tmp_path / "m.safetensors", skeleton)
    assert torch.equal(skeleton.eval()(x), want)
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    rquant.requantize(other, model.state_dict(), qmap)
    assert torch.equal(other.eval()(x), want)
    assert isinstance(other.bn1, nn.Identity)


def test_tied_weights_share_their_scales():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    rquant.quantize(model, "int4")
    assert len(qat.prepare(model)) == 1
    assert model[0].weight_range is model[1].weight_range
    x = torch.randn(16, 8)
    train(nn.Sequential(model, nn.Linear(8, 5)), x)
    want = model.eval()(x)
    rquant.freeze(model)
    assert torch.equal(model(x), want)
    assert all(a is b for a, b in zip(model[0].held.values(), model[1].held.values(), strict=True))


def test_dequantize_of_a_model_s_output(x):
    model = block(x)
    qat.prepare(model)
    model.train()
    functional.cross_entropy(model(x).dequantize(), torch.arange(16) % 5).backward()
    assert model.first.weight.grad.abs().max() > 0
    rquant.freeze(model.eval())
    assert torch.equal(model(x).dequantize(), model(x))


def test_prepared_anew_it_goes_on_from_where_it_is(x):
    model = block(x)
    qat.prepare(model)
    train(model, x)
    want = model(x)
    assert len(qat.prepare(model, activations="observed")) == 3
    assert isinstance(model.first.input_range, qat.ObservedRange)
    assert torch.equal(model(x), want)


def test_prepare_refuses(x):
    with pytest.raises(ValueError, match="expected quantized layers that are not frozen"):
        qat.prepare(Block())
    model = block(x)
    with pytest.raises(ValueError, match="weights: expected one of 'learned', 'rounded', got 'lsq'"):
        qat.prepare(model, weights="lsq")
    with pytest.raises(ValueError, match="activations: expected one of"):
        qat.prepare(model, activations="dynamic")
