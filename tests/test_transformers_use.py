"""Loaded models at work: nothing float left, generate, adapters, pipelines, memory while loading."""

import copy
import subprocess
import sys
import weakref
from pathlib import Path

import memory
import pytest
import torch

import rquant

transformers = pytest.importorskip("transformers")

from hf_models import ARCHITECTURES, CAUSAL, Architecture, ids, llama, logits, tokens  # noqa: E402

from rquant.integrations.transformers import RQuantHfQuantizer  # noqa: E402

LLAMA = ARCHITECTURES["llama"]
# OLMo's norms have no weights and its layers no bias: once embeddings are packed too, no float parameter is left
OLMO = Architecture(
    CAUSAL,
    lambda: transformers.OlmoConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
    ),
    tokens,
    logits,
)


def quantized(architecture, path, dtype=torch.float32, **config):
    """A model quantized while it loads from the float checkpoint at `path`."""
    architecture.build().save_pretrained(path)
    return architecture.auto.from_pretrained(
        path, quantization_config=rquant.RQuantConfig(**config), dtype=dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_float_parameter_left(dtype, tmp_path):
    model = quantized(OLMO, tmp_path, dtype, weights="int8", include="*")
    assert sum(p.numel() for p in model.parameters()) == 0
    model.save_pretrained(tmp_path / "q")
    for one in (model, CAUSAL.from_pretrained(tmp_path / "q", dtype="auto"), copy.deepcopy(model)):
        assert (one.dtype, one.device) == (dtype, torch.device("cpu"))
        assert (one.model.dtype, one.model.device) == (dtype, torch.device("cpu"))
        assert one.num_parameters() == OLMO.build().num_parameters()
        assert one.num_parameters(exclude_embeddings=True) == OLMO.build().num_parameters(
            exclude_embeddings=True
        )
        assert one.num_parameters(only_trainable=True) == 0
        assert torch.equal(OLMO.run(one), OLMO.run(model))
        generated = one.generate(ids(), max_new_tokens=4, do_sample=False)
        assert generated.shape == (2, 11)


def test_generate_with_a_static_cache(tmp_path):
    model = quantized(LLAMA, tmp_path, weights="int4")
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids())}
    dynamic = model.generate(ids(), **options)
    static = model.generate(ids(), cache_implementation="static", **options)
    assert torch.equal(static, dynamic)
    assert model.hf_quantizer.is_compileable


def test_speech_and_text_to_text_models_generate(tmp_path):
    for name in ("whisper", "t5"):
        architecture = ARCHITECTURES[name]
        model = quantized(architecture, tmp_path / name, weights="int8")
        inputs = {k: v for k, v in architecture.inputs().items() if not k.startswith("decoder")}
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert out.shape[0] == 2


@pytest.mark.parametrize("architecture", [LLAMA, OLMO, ARCHITECTURES["gpt2"]], ids=["llama", "olmo", "gpt2"])
def test_lora(architecture, tmp_path):
    """Adapters learn on top of packed layers, and are saved and loaded on their own."""
    peft = pytest.importorskip("peft")
    include = "*" if architecture is OLMO else None
    model = quantized(architecture, tmp_path, weights="int4", include=include)
    before = architecture.run(model)
    embeds = model.get_input_embeddings()(ids()).detach().requires_grad_()
    model(inputs_embeds=embeds).logits.square().sum().backward()
    assert embeds.grad.abs().sum() > 0  # through every packed layer

    targets = ["c_attn"] if architecture is ARCHITECTURES["gpt2"] else ["q_proj", "v_proj"]
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    assert torch.equal(architecture.run(adapted), before)  # B starts at zero
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    after = architecture.run(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    base = CAUSAL.from_pretrained(
        tmp_path, quantization_config=rquant.RQuantConfig("int4", include=include), dtype=torch.float32
    )
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(architecture.run(again), after)
    with pytest.raises(TypeError, match="a frozen weight is read-only"):
        again.merge_and_unload()


def test_pipeline(tmp_path):
    model = quantized(ARCHITECTURES["bert"], tmp_path, weights="int8")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(
        models.WordLevel({"[UNK]": 0, "[MASK]": 1, "[PAD]": 2, "a": 3, "b": 4}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]"
    )
    pipe = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=2)
    assert len(pipe("a [MASK] b")) == 2


def test_one_float_weight_is_alive_at_a_time(tmp_path, monkeypatch):
    seen, most = [], []
    original = RQuantHfQuantizer.quantize_into

    def watched(self, model, path, name, weight):
        most.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(weight))
        original(self, model, path, name, weight)

    monkeypatch.setattr(RQuantHfQuantizer, "quantize_into", watched)
    quantized(LLAMA, tmp_path, weights="int4")
    assert len(seen) == 15
    assert max(most) <= 1
    assert not any(ref() is not None for ref in seen)


PEAK = """
import sys, threading, torch, rquant, transformers
from memory import anonymous
config = rquant.RQuantConfig(weights="int4")
transformers.LlamaForCausalLM, config
base, peak, done = anonymous(), 0.0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
threading.Thread(target=watch, daemon=True).start()
model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1], **eval(sys.argv[2]))
done.set()
print((peak - base) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not memory.TOLD, reason="/proc is Linux's")
def test_memory_while_loading(tmp_path):
    """284 MB of float32: loading takes what the packed model does (37 MiB) and one float tensor (31 MiB) beside it."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 8000}
    config = llama(tie_word_embeddings=True, **sizes)
    with torch.device("meta"):
        model = CAUSAL.from_config(config)
    model.to_empty(device="cpu").tie_weights()
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    model.save_pretrained(tmp_path)
    del model
    assert (tmp_path / "model.safetensors").stat().st_size > 250e6

    def peak(path, options):
        command = [sys.executable, "-c", PEAK, str(path), options]
        here = Path(__file__).parent
        return float(subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout)

    assert peak(tmp_path, "dict(quantization_config=config)") < 80
    CAUSAL.from_pretrained(tmp_path, quantization_config=rquant.RQuantConfig(weights="int4")).save_pretrained(
        tmp_path / "q"
    )
    assert peak(tmp_path / "q", "{}") < 60
