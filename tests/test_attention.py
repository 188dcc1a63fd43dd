"""Quantized attention computes what torch's does with the rounded weights, whatever its arguments."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rquant

N, L, S, E, HEADS = 3, 5, 7, 16, 4


def quantized(float_model, weights="int8", activations=None, freeze=True, **options):
    model = copy.deepcopy(float_model)
    rquant.quantize(model, weights, activations, **options)
    if freeze:
        rquant.freeze(model)
    return model


def rounded(attention, weights="int8"):
    """Torch's attention with its weights replaced by what quantization makes of them."""
    attention = copy.deepcopy(attention)
    for name, parameter in attention.named_parameters():
        if name.endswith("weight"):
            parameter.data = rquant.quantize_tensor(parameter.data, weights, axis=0).dequantize()
    return attention


def random_mask(kind, *shape):
    """No row leaves everything out: torch gives NaN there, by whichever way it computes."""
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return {None: None, "bool": mask, "float": torch.randn(shape)}[kind]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.sampled_from([{}, {"kdim": 6, "vdim": 9}, {"kdim": 6}]),
    options=st.fixed_dictionaries(
        {k: st.booleans() for k in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    ),
    padding=st.sampled_from([None, "bool", "float"]),
    masking=st.sampled_from([None, "bool", "float", "per head"]),
    need_weights=st.booleans(),
    average=st.booleans(),
    batched=st.booleans(),
    freeze=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_computes_as_torch_does(
    sizes, options, padding, masking, need_weights, average, batched, freeze, seed
):
    torch.manual_seed(seed)
    attention = nn.MultiheadAttention(E, HEADS, **sizes, **options).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = [torch.randn(N, n, width) for n, width in ((L, E), (S, attention.kdim), (S, attention.vdim))]
    if not batched:
        inputs = [x[0] for x in inputs]
    elif not options["batch_first"]:
        inputs = [x.transpose(0, 1) for x in inputs]
    rows = N if batched else 1
    if masking == "per head":
        mask = random_mask("bool" if padding is None else padding, rows * HEADS, L, S)
    else:
        mask = random_mask(masking, L, S)
        padding = masking and padding and masking  # torch wants both of one kind
    arguments = {
        "key_padding_mask": random_mask(padding, *(N, S)[not batched :]),
        "attn_mask": mask,
        "need_weights": need_weights,
        "average_attn_weights": average,
    }
    want = rounded(attention)(*inputs, **arguments)
    model = quantized(attention, freeze=freeze)
    assert type(model) is rquant.nn.MultiheadAttention
    got = model(*inputs, **arguments)
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5)
    assert (got[1] is None) == (not need_weights)
    if need_weights:
        torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_encoder_layer_takes_no_path_around_it(norm_first, freeze, grad):
    """In evaluation torch's encoder would read the weights itself, and go through nested tensors."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, HEADS, 32, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = torch.randn(N, L, E)
    left_out = torch.arange(L) >= torch.tensor([[5], [3], [4]])
    want = rounded(encoder)(x, src_key_padding_mask=left_out)
    model = quantized(encoder, freeze=freeze)
    with torch.set_grad_enabled(grad):
        got = model(x, src_key_padding_mask=left_out)
    kept = ~left_out
    torch.testing.assert_close(got[kept], want[kept], rtol=1e-4, atol=1e-5)


def test_a_decoder_and_a_causal_mask():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(E, HEADS, 32, batch_first=True)
    decoder = nn.TransformerDecoder(layer, 2).eval()
    x, memory, causal = (
        torch.randn(N, L, E),
        torch.randn(N, S, E),
        nn.Transformer.generate_square_subsequent_mask(L),
    )
    want = rounded(decoder)(x, memory, tgt_mask=causal)
    got = quantized(decoder)(x, memory, tgt_mask=causal, tgt_is_causal=True)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_frozen_is_unfrozen(activations):
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(E, HEADS, batch_first=True).eval(), torch.randn(N, L, E)
    model = quantized(attention, "int4", activations, freeze=False, group_size=8)
    y, weights = model(x, x, x)
    rquant.freeze(model)
    got, same = model(x, x, x)
    assert torch.equal(got, y)
    assert torch.equal(same, weights)
    assert (y - attention(x, x, x)[0]).abs().max() > 0


def test_training_reaches_every_projection_and_dropout_drops():
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(E, HEADS, dropout=0.5, add_bias_kv=True), torch.randn(L, N, E)
    model = quantized(attention, freeze=False).train()
    out, _ = model(x, x, x)
    assert not torch.equal(out, model(x, x, x)[0])
    out.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert len(grads) == 10
    assert all(
        grad is not None and grad.abs().sum() > 0 for name, grad in grads.items() if name != "k_proj.bias"
    )


def test_it_comes_back_from_a_file_and_a_map(tmp_path):
    torch.manual_seed(0)
    encoder, x = nn.TransformerEncoderLayer(E, HEADS, 32, batch_first=True).eval(), torch.randn(N, L, E)
    model = quantized(encoder, "int4", "int8")
    rquant.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        skeletons = [nn.TransformerEncoderLayer(E, HEADS, 32, batch_first=True).eval() for _ in range(2)]
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    for twin in (
        rquant.load(tmp_path / "m.safetensors", skeletons[0]),
        rquant.requantize(skeletons[1], model.state_dict(), qmap),
        copy.deepcopy(model),
    ):
        assert torch.equal(twin(x), model(x))


def test_the_weights_can_still_be_looked_at():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(E, HEADS)
    model, want = quantized(attention), rounded(attention)
    assert isinstance(model, nn.MultiheadAttention)
    assert model.in_proj_weight.shape == (3 * E, E)
    assert torch.equal(model.in_proj_weight + 0, want.in_proj_weight)
    assert torch.equal(model.in_proj_bias, want.in_proj_bias)
    assert torch.equal(model.k_proj_weight + 0, want.in_proj_weight[E : 2 * E])
    assert "qint8" in repr(model.in_proj_weight)
    assert quantized(nn.MultiheadAttention(E, HEADS, kdim=3, bias=False)).in_proj_weight is None


def test_what_cannot_be_is_an_error():
    model, x = quantized(nn.MultiheadAttention(E, HEADS, batch_first=True)), torch.randn(N, L, E)
    with pytest.raises(ValueError, match=r"attn_mask: .*\(5, 5\) or \(12, 5, 5\), got \(1, 5\)"):
        model(x, x, x, attn_mask=torch.zeros(1, L))
    with pytest.raises(ValueError, match=r"key_padding_mask: .*\(3, 5\), got \(5, 3\)"):
        model(x, x, x, key_padding_mask=torch.zeros(L, N))
    with pytest.raises(ValueError, match="is_causal"):
        model(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match=r"query: .*got 4"):
        model(x[None], x, x)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("freeze", [False, True])
def test_a_compiled_encoder_layer_is_one_graph_and_takes_no_path_around_it_either(activations, freeze):
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(E, HEADS, 32, batch_first=True).eval(), torch.randn(N, L, E)
    model = quantized(layer, "int8", activations, freeze)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize("grad", [True, False])
def test_multihead_attention(grad):
    torch.manual_seed(0)
    model, x = nn.ModuleList([nn.MultiheadAttention(32, 4, batch_first=True)]).eval(), torch.randn(2, 5, 32)
    y, _ = model[0](x, x, x)
    rquant.quantize(model)
    rquant.freeze(model)
    assert isinstance(model[0].out_proj, rquant.Linear)
    with torch.set_grad_enabled(grad):
        rounded, _ = model[0](x, x, x)
    assert 0 < (y - rounded).abs().max() < 0.02


def test_transformer_encoder_runs_the_quantized_layers():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 5, 32)
    with torch.no_grad():
        y = model(x)
        rquant.quantize(model, "int8", "int8")
        rquant.freeze(model)
        ran = []
        model.layers[1].linear2.register_forward_hook(lambda *_: ran.append(1))
        rounded = model(x)
    assert ran == [1]
    assert 0 < (y - rounded).abs().max() < 0.1
