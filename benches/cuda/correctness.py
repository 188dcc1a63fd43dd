"""Step A: is every kernel right on this very device? Each number is compared with float64; outputs are full of NaN before.

`sweep` also runs on an emulated driver, in a small form: the tests do that.
"""

from collections.abc import Callable, Iterator

import torch
from operands import Form, activations, error, floats_of, forms, product, weight

from rquant._backends import cuda, cuda_outliers, reference
from rquant._native import QMatrix
from rquant._native import cuda as native_cuda
from rquant.cuda import routes

Unit = tuple[str, Callable[[], dict]]
ROWS = (1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 200)
SHAPES = ((64, 256), (40, 200), (17, 132), (70, 97), (1, 1024), (4096, 4096))
GROUPS = (32, 64, 128, -1)
ZEROS = ("none", "integer", "float")
SMALL = {
    "rows": (1, 9, 17),
    "shapes": ((40, 200), (17, 97)),
    "groups": (32, -1),
    "zeros": ("none", "integer"),
}
TINY = {"rows": (1, 9, 17), "shapes": ((40, 96),), "groups": (32,), "zeros": ("integer",)}
# Rounding of the output, and of the weight where it is dequantized first.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 8e-4, torch.bfloat16: 6e-3}


def poisoned() -> None:
    """From now on memory that nobody has written holds NaN, and the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def sweep(
    device: torch.device,
    rows: tuple[int, ...] = ROWS,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    groups: tuple[int, ...] = GROUPS,
    zeros: tuple[str, ...] = ZEROS,
    kinds: tuple[int, ...] = (8, 4, 2),
) -> Iterator[Unit]:
    """A unit for each kernel, form of a weight and shape; all `rows` in it."""
    for form in (form for form in forms(groups, zeros) if form.kind in kinds):
        for n, k in shapes:
            for dtype in TOLERANCE:
                name = str(dtype).removeprefix("torch.")
                for route in (
                    ("small", "dequantize") if dtype == torch.float32 else ("small", "tiled", "dequantize")
                ):
                    counts = [m for m in rows if m <= 8 or route != "small"]
                    yield (
                        f"{route} {name} {form} {n}x{k}",
                        lambda a=(route, form, n, k, dtype, counts): float_product(device, *a),
                    )
            for route in ("integer", "int_mm"):
                yield (
                    f"{route} {form} {n}x{k}",
                    lambda a=(route, form, n, k, rows): integer_product(device, *a),
                )
            yield f"bits {form} {n}x{k}", lambda a=(form, n, k): bits(device, *a)
    for form in (Form(43, -1, "none"), Form(52, -1, "none"), Form(43, 32, "none")):
        for n, k in shapes:
            yield f"dequantize {form} {n}x{k}", lambda a=(form, n, k): bits(device, *a)
    for k in sorted({k for _, k in shapes}):
        yield f"rows k={k}", lambda k=k: quantized_rows(device, k, rows)
    for n, k in shapes:
        yield f"outliers {n}x{k}", lambda a=(n, k): outliers(device, *a, rows)
        yield f"embedding {n}x{k}", lambda a=(n, k): embedding(device, *a)


def float_product(
    device: torch.device, route: str, form: Form, n: int, k: int, dtype: torch.dtype, rows: list[int]
) -> dict:
    """A route for weight-only products, with and without a bias; a row with infinity must be NaN and no other."""
    q = weight(form, n, k, device, seed=n + k)
    floats, worst, stray = floats_of(q), 0.0, 0
    for m in rows:
        x = activations(m, k, dtype, device, seed=m)
        bias = activations(1, n, dtype, device, seed=m)[0] if m % 2 else None
        want = product(x, floats, bias)
        worst = _worse(worst, error(routes.linear(route, x, q, bias), want))
        x[m // 2, k // 2] = torch.inf
        bad = routes.linear(route, x, q, bias).isnan().all(1)
        expected = torch.arange(m, device=device) == m // 2
        stray += int((bad != expected).sum())
    return {"ok": worst <= TOLERANCE[dtype] and not stray, "worst": worst, "rows_wrongly_nan": stray}


def integer_product(
    device: torch.device, route: str, form: Form, n: int, k: int, rows: tuple[int, ...]
) -> dict:
    """A route for int8 activations: the sums are exact, so in float32 only the scales' roundings are left."""
    q, worst, done = weight(form, n, k, device, seed=n + k), 0.0, 0
    floats = floats_of(q)
    for m in rows:
        if route == "int_mm" and not routes.takes_int_mm(m, q):
            continue
        codes, scale = routes.quantize_rows(activations(m, k, torch.float32, device, seed=m), None)
        bias = activations(1, n, torch.float32, device, seed=m)[0] if m % 2 else None
        got = routes.linear_int8(route, codes, scale, q, bias, torch.float32)
        worst = _worse(worst, error(got, product(codes * scale.double()[:, None], floats, bias)))
        done += 1
    return {"ok": worst <= TOLERANCE[torch.float32], "worst": worst, "products": done}


def bits(device: torch.device, form: Form, n: int, k: int) -> dict:
    """Dequantized to the reference's bits in each dtype; integer codes unpacked and packed again."""
    q, wrong = weight(form, n, k, device, seed=n * k), 0
    for dtype in TOLERANCE:
        got, want = routes.dequantize(q, dtype), reference.dequantize_canonical(q, dtype)
        wrong += int((got != want).sum())
    if form.kind in routes.INTEGERS:
        codes = native_cuda.unpack_codes(q, torch.empty((n, k), dtype=torch.int8, device=device))
        wrong += int((codes != reference.unpack_codes(q.codes, k, form.kind)).sum())
        packed = native_cuda.pack_codes(codes, form.kind, torch.empty_like(q.codes))
        wrong += int((packed != q.codes).sum())
    return {"ok": not wrong, "wrong": wrong}


def quantized_rows(device: torch.device, k: int, rows: tuple[int, ...]) -> dict:
    """Codes and scales of activations, also of zeros, denormals, huge numbers, NaN and infinity: the reference's bits."""
    wrong = 0
    for m in rows:
        for dtype in TOLERANCE:
            x = activations(m, k, torch.float32, device, seed=m)
            x *= torch.tensor([1, 0, 1e-30, 1e4, 1e-42], device=device).repeat(m)[:m, None]
            x[m // 2, k // 2] = torch.nan if m % 2 else torch.inf
            x = x.to(dtype)
            got, want = routes.quantize_rows(x, None), reference.quantize_rows(x)
            wrong += int((got[0] != want[0]).sum())
            wrong += int((got[1].nan_to_num(-1) != want[1].nan_to_num(-1)).sum())
    return {"ok": not wrong, "wrong": wrong}


def outliers(device: torch.device, n: int, k: int, rows: tuple[int, ...]) -> dict:
    """LLM.int8(): by a threshold and by given columns."""
    q, worst = weight(Form(8, -1, "none"), n, k, device, seed=n), 0.0
    columns = sorted({k // 3, k // 2})
    for m in rows:
        x = activations(m, k, torch.float16, device, seed=m)
        x[:, columns] *= 16
        for threshold, given in ((12.0, None), (None, columns)):
            arguments = (x, q, None, threshold, given, None)
            got = cuda_outliers.linear_outliers_canonical(*arguments)
            worst = _worse(worst, error(got, reference.linear_outliers_canonical(*arguments).double()))
    return {"ok": worst <= TOLERANCE[torch.float16], "worst": worst}


def embedding(device: torch.device, n: int, k: int) -> dict:
    """Rows of a weight."""
    q = weight(Form(4, 32, "integer"), n, k, device, seed=n)
    ids = torch.randint(0, n, (3, 5), generator=torch.Generator().manual_seed(k)).to(device)
    want, wrong = reference.embedding_canonical(ids, q, torch.float16), 0
    for got in (
        cuda.embedding_canonical(ids, q, torch.float16),
        native_cuda.gather_rows(q, ids, torch.empty(3, 5, k, dtype=torch.float16, device=device)),
    ):
        wrong += int((got != want).sum())
    return {"ok": not wrong, "wrong": wrong}


def through_the_ops(device: torch.device) -> dict:
    """`torch.ops.rquant` on tensors of the device, and a layer with a gradient for its input."""
    import rquant
    from rquant import _ops

    torch.manual_seed(0)
    worst = 0.0
    for kind, integer in ((8, False), (4, False), (8, True), (4, True)):
        q = weight(Form(kind, -1 if kind == 8 else 64, "none"), 48, 64, device, seed=kind)
        x = activations(5, 64, torch.float16, device, seed=1)
        got = _ops.linear_canonical(x, *q[:3], None, *q[3:], integer)
        want = reference.linear_canonical(x.double(), q, None, integer)
        worst = _worse(worst, error(got, want))
    layer = rquant.Linear.from_float(torch.nn.Linear(64, 48), "int4").to(device).half()
    x = activations(5, 64, torch.float16, device, seed=2).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    want = torch.ones(5, 48, dtype=torch.float64, device=device) @ layer.weight.dequantize().double()
    worst = _worse(worst, error(x.grad, want))
    return {"ok": worst <= TOLERANCE[torch.float16], "worst": worst}


def plain_weight(device: torch.device) -> QMatrix:
    """One for the checks of streams and graphs."""
    return weight(Form(4, 64, "integer"), 256, 512, device, seed=5)


def _worse(worst: float, new: float) -> float:
    """The larger; NaN once there is one."""
    return new if new != new or new > worst else worst
