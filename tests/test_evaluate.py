"""`rquant.evaluate` against straightforward references in float64, on models small enough to follow."""

import copy
import math

import pytest
import torch
from torch import nn

import rquant
from rquant.evaluate import agreement, compare, cosine, mean_pooled, perplexity, sensitivity, windows

VOCABULARY = 11


class Language(nn.Module):
    """Guesses from the last token alone; counts its calls."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, 24)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(24, VOCABULARY)
        self.calls = 0

    def forward(self, ids):
        self.calls += 1
        return self.head(self.drop(self.embed(ids)))


def quantized(model, **scheme):
    copied = copy.deepcopy(model)
    rquant.quantize(copied, **scheme)
    rquant.freeze(copied)
    return copied


@pytest.fixture
def text():
    return torch.randint(VOCABULARY, (5, 9), generator=torch.Generator().manual_seed(0))


def log_probabilities(model, window):
    """`[tokens, vocabulary]` float64, with dropout off and on by hand."""
    hidden = nn.functional.embedding(window, model.embed.weight).double()
    logits = hidden @ model.head.weight.double().T + model.head.bias.double()
    return logits - logits.exp().sum(-1, keepdim=True).log()


@pytest.mark.parametrize("given", [1, 4, 8])
def test_perplexity_is_that_of_a_loop(text, given):
    model = Language(0)
    total, right, count = 0.0, 0, 0
    for window in text:
        told = log_probabilities(model, window)
        for at in range(given, len(window)):
            total -= told[at - 1, window[at]].item()
            right += int(told[at - 1].argmax() == window[at])
            count += 1
    found = compare({"m": model}, text, given=given)["m"]
    assert found.tokens == count
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found.accuracy == right / count
    assert found.agreement is None
    assert perplexity(model, text, given=given) == found.perplexity


def test_agreement_is_torchs_divergence(text):
    model, reference = Language(1), Language(0)
    kl, same = [], []
    for window in text:
        p, q = (log_probabilities(m, window[:-1]) for m in (reference, model))
        distributions = [torch.distributions.Categorical(logits=d) for d in (p, q)]
        kl.append(torch.distributions.kl_divergence(*distributions))
        same.append(p.argmax(-1) == q.argmax(-1))
    kl, same = torch.cat(kl), torch.cat(same).double()
    by_window = compare({"m": model}, text, reference)["m"].agreement
    by_batch = agreement(model, reference, [text[:2, :-1], (text[2:, :-1],)])
    for found in (by_window, by_batch):
        assert found.count == 40
        assert found.kl == pytest.approx(kl.mean().item(), rel=1e-5)
        assert found.kl_max == pytest.approx(kl.max().item(), rel=1e-5)
        assert found.kl_p99 == pytest.approx(kl.sort().values[39].item(), rel=1e-5)
        assert found.top1 == same.mean().item()


def test_a_model_agrees_with_itself_and_runs_once(text):
    model, other = Language(0), Language(1)
    found = compare({"float": model, "other": other}, text, model)
    assert (model.calls, other.calls) == (len(text), len(text))
    assert (found["float"].agreement.kl, found["float"].agreement.top1) == (0.0, 1.0)
    assert found["other"].agreement.kl > 0.01


def test_modes_are_back_afterwards(text):
    model = Language(0).train()
    model.head.eval()
    perplexity(model, text)
    assert (model.training, model.drop.training, model.head.training) == (True, True, False)


def test_classes_that_are_ruled_out_do_not_make_nan():
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    found = agreement(nn.Identity(), nn.Identity(), [logits])
    assert found.kl == 0.0


def test_nan_is_not_hidden():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full_like(x, math.nan)

    found = agreement(Broken(), nn.Identity(), [torch.randn(2, 4)])
    assert math.isnan(found.kl)
    assert math.isnan(found.kl_p99)


def test_cosine_of_pooled_vectors():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 16)

        def forward(self, x, attention_mask):
            return (self.layer(x),)

    torch.manual_seed(0)
    model = Encoder()
    small = quantized(model, weights="int4", group_size=3)
    x, mask = torch.randn(4, 5, 6), (torch.arange(5) < torch.tensor([[1], [3], [5], [2]])).long()
    pair = []
    for m in (model, small):
        hidden = m.layer(x)
        pair.append(torch.stack([hidden[i, : int(mask[i].sum())].mean(0) for i in range(4)]).double())
    expected = torch.cosine_similarity(*pair)
    found = cosine(small, model, [{"x": x, "attention_mask": mask}], mean_pooled)
    assert found.count == 4
    assert found.mean == pytest.approx(expected.mean().item(), abs=1e-6)
    assert found.least == pytest.approx(expected.min().item(), abs=1e-6)
    assert found.least < 1


def test_sensitivity_by_hand():
    """Each layer gets the float model's input, not what the layers before it made."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 8), nn.Linear(8, 8))
    small = quantized(model, weights="int4", group_size=16, exclude="3")
    batches = [torch.randn(5, 32), torch.randn(2, 32)]
    found = sensitivity(small, model, batches)
    assert [row.name for row in found.rows] == ["0", "2"]
    x = torch.cat(batches)
    inputs = {"0": x, "2": model[:2](x)}
    for row in found.rows:
        w, y = model.get_submodule(row.name).weight, model.get_submodule(row.name)(inputs[row.name])
        q = small.get_submodule(row.name)
        by_hand = 10 * (w.square().sum() / (w - q.dequantize()).square().sum()).log10()
        assert row.weight_sqnr == pytest.approx(by_hand.item(), abs=1e-3)
        by_hand = 10 * (y.square().sum() / (y - q(inputs[row.name])).square().sum()).log10()
        assert row.output_sqnr == pytest.approx(by_hand.item(), abs=1e-3)
    assert found.worst == sorted(found.rows, key=lambda row: row.output_sqnr)
    assert str(found).count("\n") == 3
    assert not model[0]._forward_hooks


def test_sensitivity_without_inputs_and_without_loss():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.data = torch.eye(4) * 127
    found = sensitivity(quantized(model, weights="int8"), model).rows
    assert (found[0].weight_sqnr, found[0].output_sqnr) == (math.inf, None)
    assert 30 < found[1].weight_sqnr < 70
    assert sensitivity(quantized(model, weights="int8"), model).to_dict()[0]["weight_sqnr"] is None


def test_one_bit_more_is_six_decibels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256))
    by_bits = {
        bits: sensitivity(quantized(model, weights=f"int{bits}", group_size=-1, symmetric=False), model).rows[
            0
        ]
        for bits in (2, 4, 8)
    }
    assert by_bits[8].weight_sqnr - by_bits[4].weight_sqnr == pytest.approx(4 * 6.02, abs=1.0)
    assert by_bits[4].weight_sqnr > by_bits[2].weight_sqnr + 10


def test_layers_without_a_like_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    found = sensitivity(quantized(model), nn.Sequential(model[0]))
    assert [row.name for row in found.rows] == ["0"]
    assert found.unmatched == ["1"]


def test_sensitivity_of_transposed_weights():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(Conv1D(24, 16))
    found = sensitivity(quantized(model, weights="int8"), model, [torch.randn(3, 16)]).rows[0]
    assert 35 < found.weight_sqnr < 60
    assert 35 < found.output_sqnr < 60


def test_windows():
    assert windows(torch.arange(10), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert windows(torch.arange(10), 3, 2).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: windows(torch.arange(10), 3, 4), "count: expected 1 to 3 windows of 3 in 10 tokens, got 4"),
        (lambda: windows(torch.arange(10), 1), "length: expected at least 2"),
        (lambda: windows(torch.ones(2, 2), 2), "tokens: expected one dimension"),
        (lambda: perplexity(Language(0), torch.zeros(3, dtype=torch.long)), "windows: expected shape"),
        (
            lambda: perplexity(Language(0), torch.zeros(1, 4, dtype=torch.long), given=4),
            "given: expected 1 to 3, got 4",
        ),
        (lambda: agreement(Language(0), Language(0), []), "batches: expected at least one"),
        (lambda: cosine(Language(0), Language(0), []), "batches: expected at least one"),
        (lambda: sensitivity(Language(0), Language(0)), "model: expected at least one quantized layer"),
        (
            lambda: sensitivity(quantized(Language(0)), nn.Linear(2, 2)),
            "reference: expected layers of the model's names, got none called 'head'",
        ),
        (
            lambda: sensitivity(quantized(Language(0)), quantized(Language(0))),
            "reference: expected a float layer at 'head', got Linear",
        ),
        (
            lambda: perplexity(Language(0), torch.tensor([[0, 1, 2, VOCABULARY]])),
            "windows: expected ids from 0 to 10, got 1 to 11",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
