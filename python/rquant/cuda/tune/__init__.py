"""Measuring, on the device at hand, which route a product should take for how many rows of x."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...progress import each
from .. import table
from ..driver import device_name, ready
from ..table import MOST_SMALL, ROUTES, Cell, Table

SHAPES = ((4096, 4096), (14336, 4096), (8192, 8192))
"""`(n, k)`: a square of a small model, the wide layer of an 8B one, a square of a large one."""
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
GROUP_SIZES = (128, -1)
BITS = (8, 4, 2)
COLD_BYTES = 128 << 20
"""Weights that are read in turn, so that a cache keeps none of them."""


class Call(NamedTuple):
    """What is timed."""

    arithmetic: str
    bits: int
    group_size: int
    n: int
    k: int
    rows: int
    route: str


Timer = Callable[[Call, Sequence[Callable[[], object]]], float]
"""Microseconds of one of these calls, which do the same on weights of their own."""


def tune(
    device: Any = None,
    *,
    shapes: Iterable[tuple[int, int]] = SHAPES,
    bits: Iterable[int] = BITS,
    group_sizes: Iterable[int] = GROUP_SIZES,
    arithmetics: Iterable[str] = tuple(ROUTES),
    rows: Sequence[int] = ROWS,
    timer: Timer | None = None,
) -> Table:
    """Time every route on `device` (torch's current one) and keep the table, which products here take their routes from.

    It is kept in `cache_folder()` under the device's name and the versions of rquant, torch and CUDA, for other processes
    too, and holds in this one at once. `shapes` `(n, k)` and `rows` of x are sampled; others go by the nearest. Takes about
    a minute. Raises RuntimeError where there is no device that kernels run on.
    """
    import torch

    from ..._native import cuda as native
    from ..timing import GraphTimer

    if not ready():
        raise RuntimeError("CUDA: nothing to tune: no driver, or no NVRTC to compile kernels with")
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else torch.device(device)
    index, _ = native.place(torch.empty(0, device=device))
    timer = timer or GraphTimer()
    wanted = list(itertools.product(arithmetics, bits, group_sizes, shapes))
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.no_grad(), current:
        cells = [
            measure(arithmetic, code_bits, group, shape, rows, device, index, timer)
            for arithmetic, code_bits, group, shape in each(wanted, "weights")
        ]
    found = Table(cell for cell in cells if cell is not None)
    table.write(found, device_name(index))
    table.of_device.cache_clear()
    return found


def measure(
    arithmetic: str,
    bits: int,
    group_size: int,
    shape: tuple[int, int],
    rows: Sequence[int],
    device: Any,
    index: int,
    timer: Timer,
) -> Cell | None:
    """One weight's times by rows and route; None where there is no kernel, and so nothing to choose."""
    from .. import routes
    from .weights import random_activations, random_weights

    n, k = shape
    weights = random_weights(n, k, bits, group_size, device, COLD_BYTES)
    if not routes.has_kernels(weights[0], index):
        return None
    times: dict[int, dict[str, float]] = {}
    for m in rows:
        x = random_activations(m, k, arithmetic, device)
        multiply = partial(routes.linear, x=x, bias=None)
        if arithmetic == "int8":
            codes, scale = routes.quantize_rows(x, None)
            multiply = partial(routes.linear_int8, x=codes, scale=scale, bias=None, dtype=x.dtype)
        times[m] = {}
        for route in ROUTES[arithmetic]:
            few = route != "small" or m <= MOST_SMALL
            if few and (route != "int_mm" or routes.takes_int_mm(m, weights[0])):
                calls = [partial(multiply, route, q=q) for q in weights]
                times[m][route] = timer(Call(arithmetic, bits, group_size, n, k, m, route), calls)
    return Cell(arithmetic, bits, group_size, n, k, table.crossovers_of(times), times)
