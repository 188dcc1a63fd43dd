"""Rules: which layer gets which scheme, in what order, and what is an error."""

import json
import re

import pytest
import torch
from torch import nn

import rquant
from rquant.rules import rules_to_json


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"q": nn.Linear(64, 64), "o": nn.Linear(64, 64, bias=False)})
        self.norm = nn.LayerNorm(64)


class Model(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 64)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(64, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def schemes(model):
    """Name -> "type group activations" of what is quantized, in short."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, rquant.nn.PackedWeight)}
    return {
        name.replace("attention.", "").replace("layers.", ""): m.scheme.qtype.name.removeprefix("qint")
        + ("" if m.scheme.per_channel else f"g{m.scheme.group_size}")
        + ("a8" if getattr(m, "activations", None) else "")
        for name, m in layers.items()
    }


ALL = {"0.q": "8", "0.o": "8", "1.q": "8", "1.o": "8", "head": "8"}


@pytest.mark.parametrize(
    ("rules", "want"),
    [
        ([], ALL),
        ([("head", "int4")], {**ALL, "head": "4g64"}),
        ([("head", None)], {k: v for k, v in ALL.items() if k != "head"}),
        ([("layers.1", False), ("*.q", "int4")], {"0.q": "4g64", "0.o": "8", "head": "8"}),
        ([("*.q", "int4"), ("layers.1", None)], {"0.q": "4g64", "0.o": "8", "1.q": "4g64", "head": "8"}),
        ([(re.compile(r"layers\.[01]\.attention\.o"), rquant.qint2)], {**ALL, "0.o": "2g32", "1.o": "2g32"}),
        ([(r"re:layers\.\d+", "int2"), ("head", None)], {k: "2g32" for k in ALL if k != "head"}),
        ([("re:q", "int4"), (nn.Linear, "int2")], None),
        ([(nn.Embedding, "int4"), (nn.Linear, "int2")], {"embed": "4g64", **dict.fromkeys(ALL, "2g32")}),
        ([("type:Block", "int4")], {**{k: "4g64" for k in ALL if k != "head"}, "head": "8"}),
        ([("type:torch.nn.modules.sparse.Embedding", "int8")], {"embed": "8", **ALL}),
        ([("type:Block", {"group_size": 16})], {**{k: "8g16" for k in ALL if k != "head"}, "head": "8"}),
        ([("head", {"weights": "int4", "group_size": 16, "activations": "int8"})], {**ALL, "head": "4g16a8"}),
        ([("*norm", None)], ALL),
    ],
    ids=str,
)
def test_pain_17_the_first_match_wins(rules, want):
    model = Model()
    if want is None:
        with pytest.raises(ValueError, match=r"rules\[0\]: .*'re:q' matches nothing that can be quantized"):
            rquant.quantize(model, rules=rules)
        assert schemes(model) == {}
        return
    report = rquant.quantize(model, rules=rules)
    assert schemes(model) == want
    twin = Model()
    again = rquant.quantize(twin, rules=json.loads(json.dumps(rules_to_json(rules))))
    assert schemes(twin) == want
    assert again == report


def test_what_a_rule_leaves_unsaid_is_the_model_s():
    model = Model()
    rquant.quantize(
        model,
        "int4",
        "int8",
        group_size=16,
        rules=[("*.q", "int8"), ("*.o", {"activations": None}), ("head", {"weights": "int4"})],
    )
    assert schemes(model) == {"0.q": "8a8", "0.o": "4g16", "1.q": "8a8", "1.o": "4g16", "head": "4g64a8"}


def test_include_and_exclude_bound_what_rules_choose():
    model = Model()
    report = rquant.quantize(model, include="layers", exclude="*.o", rules=[("*", "int4"), ("head", "int2")])
    assert schemes(model) == {"0.q": "4g64", "1.q": "4g64"}
    reasons = {row.name: row.note for row in report.floating}
    assert reasons["head"] == "not included"
    assert reasons["layers.0.attention.o"] == "excluded by '*.o'"
    other = Model()
    report = rquant.quantize(other, rules=[("layers.1", None)])
    assert {r.name: r.note for r in report.floating}["layers.1.attention.q"] == (
        "left float by the rule 'layers.1'"
    )
    third = Model()
    rquant.quantize(third, include=[nn.Embedding, re.compile("head")])
    assert schemes(third) == {"embed": "8", "head": "8"}


def test_the_report_says_which_scheme_each_layer_got():
    model = Model()
    report = rquant.quantize(model, rules=[("head", "int4"), ("layers.1", "int2")])
    rquant.freeze(model)
    stored = {row.name: row.scheme for row in report.rows}
    assert stored["head"] == "qint4 affine group 64"
    assert stored["layers.1.attention.q"] == "qint2 affine group 32"
    assert stored["layers.0.attention.q"] == "qint8 symmetric per channel"
    assert report.bytes_after == sum(t.nbytes for t in model.state_dict().values())


@pytest.mark.parametrize(
    ("rules", "want"),
    [
        ([("head", "int4")], "4g64"),
        ([("embed", "int4")], "4g64"),
        ([("embed", "int4"), ("head", {"weights": "int4"})], "4g64"),
        ([("head", None)], None),
        ([("embed", None), ("head", "int4")], None),
    ],
)
def test_pain_18_a_tied_weight_follows_the_rule_of_any_user(rules, want):
    model = Model(tied=True)
    report = rquant.quantize(model, rules=rules)
    got = schemes(model)
    assert (got.get("embed"), got.get("head")) == (want, want)
    if want is None:
        reasons = {row.name: row.note for row in report.floating}
        assert any("left float by the rule" in reasons[name] for name in ("embed", "head"))
    else:
        rquant.freeze(model)
        assert model.embed.held["_panels"] is model.head.held["_panels"]


def test_rules_that_disagree_on_one_weight_are_an_error():
    model = Model(tied=True)
    with pytest.raises(
        ValueError, match=r"embed and head share, got qint8 .* by 'embed' and qint4 .* by 'head'"
    ):
        rquant.quantize(model, rules=[("embed", "int8"), ("head", "int4")])
    assert schemes(model) == {}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("head", "int4"), ("heads", "int8")],
            r"rules\[1\]: .*'heads' matches nothing that can be quantized",
        ),
        ([("*norm", "int4")], r"rules\[0\]: .*'\*norm' matches nothing that can be quantized"),
        ([("heads", None)], r"rules\[0\]: .*'heads' matches nothing$"),
        ([(nn.Conv2d, "int4")], r"rules\[0\]: .*torch.nn.modules.conv.Conv2d' matches nothing"),
        ([("head", "int3")], r"rules\[0\]: weights: .*'int3'"),
        ([("head", 4)], r"rules\[0\]: scheme: .*got 4"),
        ([("head", True)], r"rules\[0\]: scheme: .*got True"),
        ([("head", {"weigths": "int4"})], r"rules\[0\]: scheme: .*weights, got 'weigths'"),
        ([("head", {"group_size": 0})], r"rules\[0\]: group_size: .*got 0"),
        ([("re:(", "int4")], r"rules\[0\]: .*regular expression, got 're:\('"),
        ([("head", "int4", 3)], r"rules\[0\]: .*pair"),
        ([(3, "int4")], r"rules\[0\]: .*got 3"),
        ({"head": "int4"}, r"rules: .*list"),
        ("head", r"rules: .*list"),
    ],
)
def test_wrong_rules_are_named_and_leave_the_model_alone(rules, message):
    model = Model()
    with pytest.raises(ValueError, match=message):
        rquant.quantize(model, rules=rules)
    assert schemes(model) == {}


def test_flags_of_a_regular_expression_are_written_inside():
    with pytest.raises(ValueError, match="without flags"):
        rules_to_json([(re.compile("HEAD", re.IGNORECASE), "int4")])
    model = Model()
    rquant.quantize(model, rules=[(re.compile("HEAD", re.IGNORECASE), "int4")])
    assert schemes(model)["head"] == "4g64"
    assert rules_to_json([(re.compile("(?i:HEAD)"), rquant.qint4)]) == [["re:(?i:HEAD)", "qint4"]]
