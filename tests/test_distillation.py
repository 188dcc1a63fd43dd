"""The distillation loss, against its formula."""

import math

import pytest
import torch
from torch.nn import functional

from rquant import qat


def test_distillation():
    torch.manual_seed(0)
    logits, teacher = torch.randn(7, 10, requires_grad=True), torch.randn(7, 10, requires_grad=True)
    target = torch.randint(10, (7,))
    p, q = (teacher / 4).softmax(-1), (logits / 4).softmax(-1)
    soft = (p * (p.log() - q.log())).sum(-1).mean() * 16
    torch.testing.assert_close(qat.distillation_loss(logits, teacher), soft)
    want = 0.9 * soft + 0.1 * functional.cross_entropy(logits, target)
    got = qat.distillation_loss(logits, teacher, target)
    torch.testing.assert_close(got, want)
    got.backward()
    assert teacher.grad is None
    assert logits.grad is not None
    same = qat.distillation_loss(teacher, teacher, temperature=2.0)
    assert same.item() == pytest.approx(0, abs=1e-6)
    # words: [n, length, classes]
    longer = qat.distillation_loss(
        logits[:6].unflatten(0, (2, 3)), teacher[:6].unflatten(0, (2, 3)), target[:6].reshape(2, 3)
    )
    torch.testing.assert_close(longer, qat.distillation_loss(logits[:6], teacher[:6], target[:6]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher_logits": torch.zeros(2, 4)}, "teacher_logits: expected the logits' shape"),
        ({"temperature": 0.0}, "temperature: expected"),
        ({"temperature": math.nan}, "temperature: expected"),
        ({"alpha": 1.5}, "alpha: expected"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "target: expected class numbers"),
    ],
)
def test_distillation_refuses(change, words):
    arguments = {"logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3)} | change
    with pytest.raises(ValueError, match=words):
        qat.distillation_loss(**arguments)
