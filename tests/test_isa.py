"""One build, every instruction set: the integer path gives the same bytes at each level and thread count."""

import os
import subprocess
import sys

import pytest

from rquant import _rquant

OUTPUTS = """
import hashlib, itertools, numpy as np, rquant.numpy as rq
from rquant import _rquant
rng, digest = np.random.default_rng(0), hashlib.sha256()
for (m, n, k), weights, group in itertools.product(
    [(1, 10, 33), (3, 1, 7), (17, 100, 257), (64, 70, 640)], ["int8", "int4", "int2"], [1, 7, 32, -1]
):
    x, w, bias = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (n, k), n))
    for symmetric in (True, False):
        q = rq.quantize(w, weights, group_size=group, symmetric=symmetric)
        for array in (q.int_repr(), q.scale, q.zero_point, rq.linear(x, q, bias, activations="int8")):
            digest.update(array.tobytes())
print(_rquant.isa(), digest.hexdigest())
"""


@pytest.fixture(scope="module")
def portable() -> str:
    """What the specification gives."""
    env = {**os.environ, "RQUANT_ISA": "portable", "RQUANT_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", OUTPUTS], env=env, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("threads", ["1", "2"])
def test_integer_outputs_are_the_same_bytes(isa, portable, threads):
    level, digest = isa(OUTPUTS, RQUANT_NUM_THREADS=threads).split()
    assert level == isa.level
    assert digest == portable.split()[1]


def test_a_level_that_is_not_there():
    """An error, in one line, that names the levels there are."""
    script = "import numpy as np, rquant.numpy as rq; rq.quantize(np.ones((2, 2), np.float32))"
    env = {**os.environ, "RQUANT_ISA": "avx9000"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    for name in ("RQUANT_ISA", "avx9000", *_rquant.supported_isas()):
        assert name in last
