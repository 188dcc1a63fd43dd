"""Experts held as 3-D parameters: every matrix is quantized, and they compute as the rounded ones do."""

import copy
import json

import pytest
import torch
from torch import nn

import rquant

transformers = pytest.importorskip("transformers", "5.0")

ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "mixtral": lambda: transformers.MixtralConfig(
        **SMALL, **ENDS, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, **ENDS, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=3, head_dim=8
    ),
    # biases, matrices transposed, gate and up interleaved, an activation of its own
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SMALL, **ENDS, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, head_dim=8
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4}, **ENDS, intermediate_size=24, moe_intermediate_size=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
        q_lora_rank=None, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
}  # fmt: skip
MODELS["llama4"] = lambda: transformers.Llama4TextConfig(
    **SMALL, **ENDS, intermediate_size=24, intermediate_size_mlp=24, num_local_experts=4, head_dim=8
)
MODELS["jetmoe"] = lambda: transformers.JetMoeConfig(
    **{k: v for k, v in SMALL.items() if k != "num_attention_heads"}, **ENDS, intermediate_size=24,
    num_local_experts=4, num_experts_per_tok=2, kv_channels=8,
)  # fmt: skip
IDS = torch.arange(24).view(2, 12)


def build(name, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(MODELS[name]()).eval()
    if device == "cpu":
        for parameter in model.parameters():  # biases too
            nn.init.normal_(parameter, std=0.2)
    return model


def rounded(model):
    """What the integers mean, in the float model; a transposed matrix has its groups along its input too."""
    for parameter in model.parameters():
        turned = type(model).__name__.startswith(("GptOss", "Llama4"))
        if parameter.dim() == 3:
            for matrix in parameter.data:
                view = matrix.T if turned else matrix
                view.copy_(
                    rquant.quantize_tensor(view.contiguous(), "int4", axis=0, group_size=8).dequantize()
                )
    return model


@pytest.mark.parametrize("name", MODELS)
def test_pain_10_every_expert_is_quantized_and_computes_as_rounded(name, tmp_path):
    model = build(name)
    before = sum(p.nbytes for p in model.parameters())
    want = rounded(copy.deepcopy(model))(IDS).logits
    held = [
        name for name, m in model.named_modules() if any(p.dim() == 3 for p in m.parameters(recurse=False))
    ]
    report = rquant.quantize(model, "int4", group_size=8, include=held)
    assert held
    assert report.bytes_before == before
    assert not any(p.dim() == 3 for p in model.parameters())
    assert all(isinstance(model.get_submodule(name), rquant.nn.Container) for name in held)
    unfrozen = model(IDS).logits
    torch.testing.assert_close(unfrozen, want, rtol=1e-3, atol=1e-3)
    rquant.freeze(model)
    got = model(IDS).logits
    assert torch.equal(got, unfrozen)
    rquant.save(model, tmp_path / "m.safetensors")
    loaded = rquant.load(tmp_path / "m.safetensors", build(name, "meta"))
    assert torch.equal(loaded(IDS).logits, got)
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    again = rquant.requantize(build(name, "meta"), model.state_dict(), qmap)
    assert torch.equal(again(IDS).logits, got)
    assert torch.equal(copy.deepcopy(model)(IDS).logits, got)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_integer_activations_and_generation(name):
    model = build(name)
    want = model(IDS).logits
    report = rquant.quantize(model, "int8", "int8")
    rquant.freeze(model)
    assert not any("experts" in row.name and "Linear" in row.type for row in report.floating)
    got = model(IDS).logits
    assert nn.functional.cosine_similarity(want.flatten(), got.flatten(), 0) > 0.99
    with torch.no_grad():
        assert model.generate(IDS[:1], max_new_tokens=3, do_sample=False).shape == (1, 15)


class Routed(nn.Module):
    """A class of one's own, in the usual layout."""

    def __init__(self, gated=True):
        super().__init__()
        torch.manual_seed(0)
        name = "gate_up_proj" if gated else "up_proj"
        self.register_parameter(name, nn.Parameter(torch.randn(4, 16 if gated else 8, 32) / 4))
        self.down_proj = nn.Parameter(torch.randn(4, 32, 8) / 4)
        self.act_fn = nn.SiLU()

    def forward(self, x, index, weights):
        out = torch.zeros_like(x)
        for token in range(len(x)):
            for expert, weight in zip(index[token].tolist(), weights[token], strict=True):
                if expert < 4:
                    if hasattr(self, "gate_up_proj"):
                        gate, up = (self.gate_up_proj[expert] @ x[token]).chunk(2)
                        hidden = self.act_fn(gate) * up
                    else:
                        hidden = self.act_fn(self.up_proj[expert] @ x[token])
                    out[token] += weight * (self.down_proj[expert] @ hidden)
        return out


@pytest.fixture
def routed(monkeypatch):
    registry = rquant.nn.registry
    monkeypatch.setattr(registry, "_registrations", list(registry._registrations))
    rquant.register_module(Routed, rquant.nn.Experts)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.usefixtures("routed")
def test_a_class_of_one_s_own(gated):
    experts = Routed(gated)
    x, weights = torch.randn(9, 32), torch.rand(9, 2)
    index = torch.stack([torch.randperm(5)[:2] for _ in range(9)])  # 4 is for nobody
    index[index == 2] = 0  # an expert without a token
    want = experts(x, index, weights)
    rquant.quantize(experts, "int8")
    assert type(experts) is rquant.nn.Experts
    y = experts(x, index, weights)
    assert 0 < (y - want).abs().max() < 0.05
    rquant.freeze(experts)
    assert torch.equal(experts(x, index, weights), y)
    compiled = torch.compile(experts, fullgraph=True, backend="eager")(x, index, weights)
    torch.testing.assert_close(compiled, y)
    traced = torch.jit.trace(experts, (x, index, weights))
    other = index.roll(3, 0)
    torch.testing.assert_close(traced(x, other, weights), experts(x, other, weights))
    assert experts(torch.zeros(0, 32), index[:0], weights[:0]).shape == (0, 32)


@pytest.mark.usefixtures("routed")
def test_training_reaches_the_experts_that_were_asked():
    experts = Routed()
    rquant.quantize(experts, "int8")
    x, index = torch.randn(6, 32, requires_grad=True), torch.tensor([[0, 3]] * 6)
    experts(x, index, torch.rand(6, 2)).square().sum().backward()
    asked = [layer.weight.grad is not None for layer in experts.gate_up_proj]
    assert asked == [True, False, False, True]
    assert x.grad.abs().sum() > 0


def test_pain_10_3d_parameters_of_an_unknown_module_are_named_in_the_report():
    report = rquant.quantize(nn.ModuleList([Routed(), nn.Linear(3, 3)]))
    assert report.floating[0].note == (
        "no quantized form of gate_up_proj [4, 16, 32], down_proj [4, 32, 8]; see rquant.register_module"
    )
