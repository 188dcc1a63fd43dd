"""CUDA without a GPU, and with one that behaves as the driver's documentation says: errors, the cache, contexts, graphs."""

import os
import shutil
import subprocess
import sys

import cuda_emulator
import pytest

from rquant import _rquant
from rquant.cuda import cache_folder, find_nvrtc, precompile

needs_compiler = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")

WEIGHT = """
q = _native.quantize(torch.randn(20, 64), 4, 32, False)
x = torch.randn(3, 64).half()
def product():
    return cuda.linear_canonical(x, q, None, False)
"""


@needs_compiler
def test_importing_and_computing_on_the_cpu_starts_no_driver(cuda_driver):
    script = (  # torch opens the library too
        "import rquant, ctypes, torch\n"
        "rquant.Linear.from_float(torch.nn.Linear(8, 8))(torch.ones(1, 8))\n"
        "driver = ctypes.CDLL('libcuda.so.1')\n"
        "assert not driver.rquant_emulator_initialized()\n"
        "assert not rquant._backends.cuda.ready.cache_info().currsize\n"
        "rquant._rquant.cuda_device(0)\n"
        "assert driver.rquant_emulator_initialized()\n"
    )
    env = {**os.environ, "LD_LIBRARY_PATH": str(cuda_driver)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(_rquant.cuda_driver_present(), reason="this machine has a driver")
def test_without_a_driver_there_is_an_error_that_says_so():
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        _rquant.cuda_device(0)
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        _rquant.cuda_bitpack(0, 0, True, 16, 16, 1, 1, 4)


@needs_compiler
def test_modules_are_compiled_once_and_kept(cuda_driver, tmp_path):
    """A damaged file is compiled anew; a folder that cannot be written costs nothing but time."""
    script = WEIGHT + "want = product(); assert torch.equal(product(), want)"
    cuda_emulator.run(script, cuda_driver, tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 1
    assert files[0].startswith("linear_small_4_f16.sm_90a.")
    assert files[0].endswith(".cubin")
    whole = (tmp_path / files[0]).read_bytes()
    cuda_emulator.run(script, cuda_driver, tmp_path, RQUANT_NVRTC="/nowhere/libnvrtc.so.0")
    (tmp_path / files[0]).write_bytes(whole[:-1])
    cuda_emulator.run(script, cuda_driver, tmp_path)
    assert (tmp_path / files[0]).read_bytes() == whole
    cuda_emulator.run(script, cuda_driver, "/proc/no-such-folder")


@needs_compiler
def test_what_fails_is_said(cuda_driver, cubins):
    cuda_emulator.run(
        WEIGHT
        + """
def says(call, *words):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(words)

# recording a graph (the emulator takes odd streams for that): nothing can be loaded, what is loaded can be launched
native_cuda.place = lambda tensor: (0, 0x1001)
says(product, "linear_small_4_f16", "not loaded yet", "capturing a graph")
native_cuda.place = lambda tensor: (0, 0x1000)
product()
native_cuda.place = lambda tensor: (0, 0x1001)
product()
assert state()[1] == 0x1001
native_cuda.place = lambda tensor: (0, 0)
says(lambda: _rquant.cuda_device(2), "cuDeviceGet", "101")
out = torch.empty(3, 20).half()
says(lambda: native_cuda.linear(x[:, :32], q, None, out), "x: expected shape [m, 64], got (3, 32)")
says(lambda: native_cuda.linear(x, q, torch.zeros(19), out), "bias: expected 20 elements, got 19")
says(lambda: native_cuda.linear(x, q, None, out.float()), "out: expected torch.float16, got torch.float32")
says(lambda: native_cuda.linear(x.double(), q, None, out.double()), "x: expected float32, float16 or bfloat16")
says(lambda: native_cuda.linear(x, q._replace(scale=q.scale[:3]), None, out), "scale: expected 40 elements")
says(lambda: native_cuda.linear(x, q._replace(group_size=16), None, out), "expected 80 elements")
odd = _native.quantize(torch.randn(20, 64), 4, 16, False)
says(lambda: native_cuda.linear(x, odd, None, out), "group_size: expected a multiple of 32, or one group a row, got 16")
says(lambda: native_cuda.quantize_rows(x, torch.ones(2), *reference.quantize_rows(x)), "scale: expected 1 or 3 elements, got 2")
says(lambda: native_cuda.linear(torch.empty(193, dtype=torch.half)[1:].view(3, 64), q, None, out), "x: expected a multiple of 16")
""",
        cuda_driver,
        cubins,
    )


@needs_compiler
def test_without_nvrtc_torch_computes_after_a_warning(cuda_driver, tmp_path):
    script = cuda_emulator.BEGIN.replace("assert cuda.ready()", "cuda.compiler.find_nvrtc = lambda: None")
    script += WEIGHT + (
        "import warnings\nwith warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n    product(), product()\n"
        "assert len(seen) == 1 and 'RQUANT_NVRTC' in str(seen[0].message), seen\nassert launches() == 0\n"
    )
    env = {**os.environ, "LD_LIBRARY_PATH": str(cuda_driver), "RQUANT_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_the_current_context_stays(cuda_driver, cubins):
    """Two devices: a launch is in its own, and what was current before is so after, in every thread."""
    cuda_emulator.run(
        WEIGHT
        + """
import threading
driver.cuCtxSetCurrent.argtypes = [ctypes.c_void_p]
context = ctypes.c_void_p()
assert driver.rquant_emulator_current() == -1
want = product()
assert driver.rquant_emulator_current() == -1
native_cuda.place = lambda tensor: (1, 0)
assert torch.equal(product(), want)
driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
driver.cuCtxSetCurrent(context)
assert torch.equal(product(), want) and driver.rquant_emulator_current() == 0
def other():
    assert driver.rquant_emulator_current() == -1
    seen.append(torch.equal(product(), want) and driver.rquant_emulator_current() == -1)
seen = []
for _ in range(2):
    thread = threading.Thread(target=other)
    thread.start(), thread.join()
assert seen == [True, True]
""",
        cuda_driver,
        cubins,
    )


@needs_compiler
def test_an_old_gpu_multiplies_few_rows_and_dequantizes_for_many(cuda_driver, tmp_path):
    cuda_emulator.run(
        WEIGHT
        + """
assert _rquant.cuda_device(0) == ("sm_75", 132)
before = launches()
got = product()
assert launches() == before + 1
torch.testing.assert_close(got, reference.linear_canonical(x, q, None, False), rtol=2e-3, atol=2e-3)
x = torch.randn(20, 64).half()
many = product()
assert launches() == before + 2
torch.testing.assert_close(many, reference.linear_canonical(x, q, None, False), rtol=1e-2, atol=1e-2)
names = sorted(name.split(".")[0] for name in os.listdir(os.environ["RQUANT_CACHE_DIR"]) if "sm_75" in name)
assert names == ["dequantize_4", "linear_simt_4"], names
codes, scale = reference.quantize_rows(x)
try:
    native_cuda.linear_int8(codes, scale, q, None, many)
except RuntimeError as error:
    assert "linear_int8_4 needs compute capability 8.0 or later, got sm_75" in str(error)
else:
    raise AssertionError
""",
        cuda_driver,
        tmp_path,
        RQUANT_EMULATOR_ARCH="75",
    )


@needs_compiler
def test_precompiled_kernels_are_found(cuda_driver, tmp_path):
    command = [sys.executable, "-m", "rquant.cuda.precompile", "--arch", "sm_90a", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--nvrtc", str(cuda_driver / "libnvrtc.so.0")], capture_output=True, text=True, check=True
    )
    modules = len(_rquant.cuda_modules())
    assert done.stdout.startswith(f"sm_90a: {modules} modules")
    assert len(list(tmp_path.iterdir())) == modules
    script = WEIGHT + "_rquant.cuda_configure(None, 0, os.environ['RQUANT_CACHE_DIR']); product()"
    cuda_emulator.run(script, cuda_driver, tmp_path)


@needs_compiler
@pytest.mark.skipif(find_nvrtc() is None, reason="no NVRTC (a CUDA build of torch brings it)")
def test_from_source_to_launch_with_the_real_compiler(cuda_driver, tmp_path):
    """The driver looks for the kernel in what NVRTC made for its architecture."""
    cuda_emulator.run(WEIGHT + "product()", cuda_driver, tmp_path, RQUANT_NVRTC=str(find_nvrtc()[0]))
    (cubin,) = tmp_path.iterdir()
    assert b".text.linear_small_4_f16\0" in cubin.read_bytes()
    assert cubin.stat().st_size > 10_000


def test_precompile_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="arch: expected a name like 'sm_90a', got 'hopper'"):
        precompile("hopper", tmp_path)
    with pytest.raises(RuntimeError, match=r"NVRTC at /nowhere/libnvrtc\.so"):
        precompile("sm_90a", tmp_path, "/nowhere/libnvrtc.so")
    with pytest.raises(ValueError, match="module: expected one of"):
        _rquant.cuda_compile("/nowhere/libnvrtc.so", "linear_3", "sm_90a")


def test_where_things_are(monkeypatch, tmp_path):
    monkeypatch.setenv("RQUANT_NVRTC", "/opt/libnvrtc.so.12")
    assert [str(part) for part in find_nvrtc()] == ["/opt/libnvrtc.so.12", "12"]
    monkeypatch.setenv("RQUANT_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RQUANT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rquant"
    assert shutil.which("c++") is None or cuda_emulator.COMPILER
