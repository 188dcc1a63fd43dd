"""Whether every instruction set of this CPU computes what the portable kernels do.

The kernels are chosen once in a process, so each level has its own: `python -m rquant.cli._selfcheck` prints what the level
in RQUANT_ISA computes.
"""

import hashlib
import os
import subprocess
import sys

import numpy as np

from .. import _native
from .. import numpy as rnumpy
from .._rquant import supported_isas
from ..qtypes import INTEGERS


def product() -> str:
    """A digest of small products: exact int32 ones, held against int64 here, and float ones of the integer path.

    Raises ArithmeticError for an integer product that is not exact.
    """
    random = np.random.default_rng(0)
    seen = hashlib.sha256()
    for qtype in INTEGERS:
        weight = random.standard_normal((19, 131), np.float32)
        x = random.standard_normal((5, 131), np.float32)
        q = rnumpy.quantize(weight, qtype)
        a = random.integers(-127, 128, (5, 131), np.int8)
        got = _native.gemm_i32(a, _native.pack(q.matrix), 19)
        if not np.array_equal(got, a.astype(np.int64) @ q.int_repr().astype(np.int64).T):
            raise ArithmeticError(f"{qtype.name}: the int32 product is not exact")
        seen.update(got.tobytes() + rnumpy.linear(x, q, activations="int8").tobytes())
    return seen.hexdigest()


def failures() -> dict[str, str]:
    """What is wrong with each level (the empty string: nothing): all must give the portable level's bits."""
    found, expected = {}, ""
    for isa in supported_isas():  # portable first
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            env={**os.environ, "RQUANT_ISA": isa},
            capture_output=True,
            text=True,
        )
        digest = done.stdout.strip()
        expected = expected or digest
        if done.returncode:
            found[isa] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        else:
            found[isa] = "" if digest == expected else "its products differ from the portable kernels'"
    return found


if __name__ == "__main__":
    print(product())
