"""How many threads: what is set, else the environment, else torch, else the machine; few in workers."""

import multiprocessing
import os
import subprocess
import sys

import pytest

import rquant


def run(script, **environment):
    env = {key: value for key, value in os.environ.items() if "NUM_THREADS" not in key}
    command = [sys.executable, "-c", f"import rquant\n{script}"]
    return subprocess.run(command, env={**env, **environment}, capture_output=True, text=True)


SHOW = "print(rquant.get_num_threads())"


@pytest.mark.parametrize(
    ("script", "environment", "want"),
    [
        (SHOW, {"RQUANT_NUM_THREADS": "7"}, "7"),
        (f"import torch; torch.set_num_threads(3); {SHOW}", {}, "3"),
        (f"import torch; torch.set_num_threads(3); {SHOW}", {"RQUANT_NUM_THREADS": "7"}, "7"),
        (f"import torch; rquant.set_num_threads(5); {SHOW}", {"RQUANT_NUM_THREADS": "7"}, "5"),
    ],
)
def test_who_decides(script, environment, want):
    done = run(script, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == want


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")
def test_without_torch_affinity_is_the_limit():
    done = run(f"{SHOW}; import os; print(len(os.sched_getaffinity(0)))")
    threads, cores = map(int, done.stdout.split())
    assert 1 <= threads <= cores  # a cgroup may leave fewer


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_wrong_environment_is_named(value):
    done = run(SHOW, RQUANT_NUM_THREADS=value)
    assert done.returncode != 0
    assert "RQUANT_NUM_THREADS: expected an integer in [1, 65536]" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("n", [0, -3, "x", None, 10**30])
def test_a_wrong_number_is_named(n):
    with pytest.raises(ValueError, match=r"n: expected an integer in \[1, 65536\]"):
        rquant.set_num_threads(n)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_takes_no_more_than_torch_has():
    script = """
import os, torch
rquant.set_num_threads(64)
torch.set_num_threads(2)
assert rquant.get_num_threads() == 64
child = os.fork()
if child == 0:
    os._exit(rquant.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(script).stdout == "2\n"


def test_this_process_is_no_worker():
    assert multiprocessing.parent_process() is None
