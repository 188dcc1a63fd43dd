"""`fold_bn`: the same outputs with the BatchNorms gone, by the order of execution; and what it leaves alone, and why."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rquant


def settle(module):
    """Statistics and parameters that a BatchNorm may have after training."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3)
            if norm.affine:
                nn.init.normal_(norm.weight, 1, 0.5)
                nn.init.normal_(norm.bias)
    return module


class Program(nn.Module):
    """A net whose layers run in an order that neither names nor children tell.

    Each step is (layer, norm, tap): a convolution of that index, the norm of its own if `norm`, and what else reads the
    convolution's output: None, "add" (it is added later), "view" or "return".
    """

    def __init__(self, steps):
        super().__init__()
        self.steps, self.taps = steps, None
        order = sorted({layer for layer, _, _ in steps}, reverse=True)
        self.norms = nn.ModuleDict({str(i): nn.BatchNorm2d(4) for i in reversed(range(len(steps)))})
        self.layers = nn.ModuleDict({str(i): nn.Conv2d(4, 4, 3, padding=1, bias=i % 2 == 0) for i in order})

    def forward(self, x):
        outputs, later = [], 0
        for i, (layer, norm, tap) in enumerate(self.steps):
            y = self.layers[str(layer)](x)
            if tap == "add":
                later = later + y
            elif tap == "view":
                later = later + y.flatten(2)[..., :1, None]
            elif tap == "return":
                outputs.append(y)
            x = torch.relu(self.norms[str(i)](y) if norm else y) + x
        return {"x": x + later, "taps": outputs}


taps = st.sampled_from([None, None, None, "add", "view", "return"])
steps = st.lists(st.tuples(st.integers(0, 3), st.booleans(), taps), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_folds_what_it_may_and_nothing_else(steps):
    torch.manual_seed(0)
    model, x = settle(Program(steps)).eval(), torch.randn(2, 4, 5, 5)
    runs = [layer for layer, _, _ in steps]
    want = {
        f"norms.{i}"
        for i, (layer, norm, tap) in enumerate(steps)
        if norm and tap is None and runs.count(layer) == 1
    }
    with torch.no_grad():
        before = model(x)
        report = rquant.fold_bn(model, x)
        after = model(x)
    assert {row.name for row in report.folded} == want
    gone = {name for name, module in model.named_modules() if isinstance(module, nn.Identity)}
    assert gone == want
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert report.difference <= 1e-5


SPACES = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
}
SPACES[3] = nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize(("groups", "bias", "affine"), [(1, True, True), (2, False, True), (3, False, False)])
def test_every_convolution(dtype, space, transposed, groups, bias, affine):
    torch.manual_seed(0)
    conv, norm = SPACES[space][transposed], SPACES[space][2]
    layers = conv(6, 12, 3, stride=2, padding=1, groups=groups, bias=bias), norm(12, affine=affine)
    model = settle(nn.Sequential(*layers)).eval().to(dtype)
    x = torch.randn(2, 6, *[5] * space, dtype=dtype)
    want = copy.deepcopy(model).double()(x.double())
    report = rquant.fold_bn(model, x)
    assert [type(m) for m in model] == [conv, nn.Identity]
    assert {p.dtype for p in model.parameters()} == {dtype}
    close = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(model(x).double(), want, rtol=close, atol=close * want.abs().max().item())
    assert report.difference <= close


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    model, x = settle(nn.Sequential(nn.Linear(6, 8, bias), nn.BatchNorm1d(8))).eval(), torch.randn(5, 6)
    want = model(x)
    assert rquant.fold_bn(model, x).folded
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


def test_the_weight_stays_the_same_parameter_and_the_mode_stays():
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Dropout())).train()
    model[2].eval()
    weight, statistics = model[0].weight, model[1].running_mean.clone()
    norm = model[1]
    rquant.fold_bn(model, torch.randn(2, 3, 4, 4))
    assert model[0].weight is weight
    assert isinstance(model[0].bias, nn.Parameter)
    assert model[0].bias.requires_grad
    assert [m.training for m in model] == [True, True, False]
    assert torch.equal(norm.running_mean, statistics)
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks
    assert "1.weight" not in model.state_dict()


def test_hooks_on_the_output_of_a_norm_stay():
    model, x = settle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).eval(), torch.randn(2, 3, 4, 4)
    seen = []
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    want = model(x)
    rquant.fold_bn(model, x)
    seen.clear()
    model(x)
    torch.testing.assert_close(seen[0], want, rtol=1e-5, atol=1e-5)
    handle.remove()
    model(x)
    assert len(seen) == 1


class Keeps(nn.Module):
    """Calls a convolution and a norm as `use` says."""

    def __init__(self, use, conv=None, norm=None):
        super().__init__()
        self.use = use
        self.conv = conv or nn.Conv2d(4, 4, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(4)
        self.kept = None

    def forward(self, x):
        return self.use(self, x)


def remember(m, x):
    m.kept = m.conv(x)
    return m.norm(m.kept)


def hooked(register):
    conv = nn.Conv2d(4, 4, 1)
    getattr(conv, register)(lambda *args: None)
    return conv


def norm_of(**kinds):
    return nn.BatchNorm2d(4, **kinds)


class Wide(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Padded(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x + 1, weight, bias)


class Always(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


def plain(m, x):
    return m.norm(m.conv(x))


def tied():
    conv = nn.Conv2d(4, 4, 1)
    conv.again = nn.Conv2d(4, 4, 1)
    conv.again.weight = conv.weight
    return conv


def hooked_norm():
    norm = nn.BatchNorm2d(4)
    norm.register_forward_pre_hook(lambda *args: None)
    return norm


KEPT = {
    "another reader": (lambda m, x: m.norm(y := m.conv(x)) + y, "conv has another reader"),
    "changed in place": (lambda m, x: m.norm(m.conv(x).mul_(2)), "conv has another reader"),
    "through an alias": (
        lambda m, x: (y := m.conv(x), y.data.mul_(2), m.norm(y))[2],
        "conv has another reader",
    ),
    "as numpy": (lambda m, x: m.norm(y := m.conv(x)) + float(y.numpy().sum()), "conv has another reader"),
    "returned": (lambda m, x: (y := m.conv(x), m.norm(y)), "output of conv is kept or returned"),
    "remembered": (remember, "output of conv is kept or returned"),
    "runs twice": (lambda m, x: m.norm(m.conv(m.conv(x))), "conv: runs 2 times"),
    "norm twice": (lambda m, x: m.norm(m.norm(m.conv(x))), "runs 2 times"),
    "not at all": (lambda m, x: m.conv(x), "does not run on the sample"),
    "first": (lambda m, x: m.conv(m.norm(x)), "not the very output of a layer"),
    "between": (lambda m, x: m.norm(m.conv(x).relu()), "not the very output of a layer"),
    "weight read": (
        lambda m, x: m.norm(m.conv(x)) + m.conv.weight.sum(),
        "conv: its parameters are read elsewhere",
    ),
    "norm read": (lambda m, x: m.norm(m.conv(x)) + m.norm.bias.sum(), "its parameters are read elsewhere"),
    "own forward": (plain, "conv: Wide has a forward of its own", Wide(4, 4, 1)),
    "own convolution": (plain, "conv: Padded has a forward of its own", Padded(4, 4, 1)),
    "hook": (plain, "conv: its hooks see its output", hooked("register_forward_hook")),
    "backward hook": (plain, "conv: its hooks see its output", hooked("register_full_backward_hook")),
    "tied": (plain, "conv: its parameters are shared", tied()),
    "computed": (
        plain,
        "conv: its weight is computed",
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    ),
    "batch's own": (plain, "the batch's own statistics", None, norm_of(track_running_stats=False)),
    "always training": (plain, "stays in training mode", None, Always(4)),
    "hook of norm": (plain, "its hooks see its input", None, hooked_norm()),
}


@pytest.mark.parametrize(("use", "reason", "modules"), [(u, r, m) for u, r, *m in KEPT.values()], ids=KEPT)
def test_what_stays_and_why(use, reason, modules):
    model, x = Keeps(use, *modules), torch.randn(2, 4, 5, 5)
    parameters = copy.deepcopy(dict(model.named_parameters()))
    report = rquant.fold_bn(model, x)
    [row] = report.rows
    assert reason in row.reason
    assert reason in str(report)
    assert not report.folded
    torch.testing.assert_close(dict(model.named_parameters()), parameters, rtol=0, atol=0)


def test_shared_modules_stay():
    norm = nn.BatchNorm2d(4)
    model = nn.ModuleDict({"a": Keeps(plain, norm=norm), "b": Keeps(plain, norm=norm)})
    model.forward = lambda x: model["b"](model["a"](x))
    assert "shared with b.norm" in rquant.fold_bn(model, torch.randn(1, 4, 3, 3)).kept[0].reason


def test_channels_that_are_not_the_second_dimension():
    """BatchNorm1d after a Linear on [N, L, C] normalizes L, even where L = C; so after a convolution without a batch."""
    model = Keeps(plain, nn.Linear(6, 6), nn.BatchNorm1d(6))
    assert "gives 3 dimensions" in rquant.fold_bn(model, torch.randn(2, 6, 6)).kept[0].reason
    model = Keeps(plain, nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6))
    assert "gives 2 dimensions" in rquant.fold_bn(model, torch.randn(4, 6)).kept[0].reason


def test_what_would_leave_the_dtype_stays():
    model = Keeps(plain).half().eval()
    model.norm.running_var.fill_(1e-7)
    model.norm.eps = 1e-10
    model.conv.weight.data.fill_(1000.0)
    assert "not be finite in float16" in rquant.fold_bn(model, torch.zeros(1, 4, 2, 2).half()).kept[0].reason


def test_reading_a_size_is_no_reading():
    def use(m, x):
        y = m.conv(x)
        assert y.shape[1] == len(m.conv.weight) == y.size(1)
        return m.norm(y) if y.dtype == x.dtype else y

    assert rquant.fold_bn(Keeps(use), torch.randn(1, 4, 3, 3)).folded


def test_what_hangs_in_a_dead_cycle_is_kept_by_nobody():
    def use(m, x):
        cycle = [y := m.conv(x)]
        cycle.append(cycle)
        return m.norm(y)

    assert rquant.fold_bn(Keeps(use), torch.randn(1, 4, 3, 3)).folded


def test_inputs_by_keyword_and_outputs_of_several_kinds():
    model = settle(Keeps(lambda m, x: m.norm(input=m.conv(input=x)))).eval()
    outer = nn.Module()
    outer.inner, outer.forward = (
        model,
        lambda *, pixels, scale=1: ({"y": outer.inner(pixels) * scale}, 3, None),
    )
    assert rquant.fold_bn(outer, pixels=torch.randn(1, 4, 3, 3), scale=2).folded


def test_a_model_that_keeps_state_is_put_back():
    def use(m, x):
        m.count = getattr(m, "count", 0) + 1
        return m.norm(m.conv(x)) + m.count

    model, x = settle(Keeps(use, nn.Conv2d(4, 4, 1, bias=False))).eval(), torch.randn(1, 4, 3, 3)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="model: expected the same outputs as before"):
        rquant.fold_bn(model, x)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model.conv.bias is None


def test_random_models_are_compared_on_the_same_numbers():
    model, x = Keeps(lambda m, x: m.norm(m.conv(x)) + torch.randn(1)), torch.randn(1, 4, 3, 3)
    state = torch.get_rng_state()
    assert rquant.fold_bn(model, x).folded
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_the_model_changes_nothing():
    model = Keeps(plain)
    with pytest.raises(RuntimeError, match="expected input"):
        rquant.fold_bn(model, torch.randn(1, 7, 3, 3))
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert not model.conv._forward_hooks


@pytest.mark.parametrize("how", ["compiled", "parallel"])
def test_wrapped_models(how):
    torch.manual_seed(0)
    inner, x = settle(Keeps(plain)).eval(), torch.randn(1, 4, 3, 3)
    want = inner(x)
    model = torch.compile(inner, backend="eager") if how == "compiled" else nn.DataParallel(inner)
    assert rquant.fold_bn(model, x).folded
    torch.testing.assert_close(inner(x), want, rtol=1e-5, atol=1e-5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="args: expected sample inputs"):
        rquant.fold_bn(Keeps(plain))
    with torch.device("meta"):
        model = Keeps(plain)
    with pytest.raises(ValueError, match="model: expected parameters with values"):
        rquant.fold_bn(model, torch.randn(1, 4, 3, 3))


@pytest.mark.parametrize("activations", [None, "int8"])
def test_quantized_layers_that_are_not_frozen(activations):
    torch.manual_seed(0)
    model, x = settle(nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))).eval(), torch.randn(16, 64)
    want = model(x)
    rquant.quantize(model, "int8", activations)
    assert rquant.fold_bn(model, x).folded
    rquant.freeze(model)
    assert (model(x) - want).norm() < 0.02 * want.norm()
    again = nn.Sequential(model[0], nn.BatchNorm1d(32)).eval()
    assert "0: frozen" in rquant.fold_bn(again, x).kept[0].reason
