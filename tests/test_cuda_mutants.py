"""Checks that notice nothing are none: a few broken kernels each time, all of them in `make cuda-check`."""

import subprocess
import sys

import cuda_emulator
import cuda_mutants
import pytest
from cuda_checks import CHECKS


@pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")
def test_a_sample_of_broken_kernels_is_caught():
    done = subprocess.run([sys.executable, cuda_mutants.__file__, "6"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " caught" in done.stdout.splitlines()[-1]


def test_each_rule_fits_somewhere_and_what_is_said_to_survive_is_there():
    every = list(cuda_mutants.mutants(cuda_emulator.SOURCES))
    assert {rule for _, rule, *_ in every} == set(cuda_mutants.RULES)
    known = {(file, rule, what) for file, rule, _, what, _ in every}
    assert cuda_mutants.SURVIVORS.keys() <= known
    assert len(every) > 150
    files = {file for file, *_ in every}
    assert files >= {path.name for path in cuda_mutants.sources(cuda_emulator.SOURCES)}, (
        "a file that no rule fits"
    )


def test_every_check_is_tried():
    assert tuple(CHECKS) == cuda_mutants.OPS
