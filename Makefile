# `make demo` on a fresh clone needs uv, or Python 3.11 or newer, and nothing else.
BIN := .venv/bin
export NO_MKDOCS_2_WARNING := 1
STAMP := .venv/.installed
CANDIDATES := python3.13 python3.12 python3.11 python3

# Candidates are run, not only looked for: version managers leave commands that exist and fail.
UV = $(shell uv --version >/dev/null 2>&1 && echo uv)
PYTHON = $(shell for python in $(CANDIDATES); do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; \
	done)

# Each worker runs whole files, in the order of tests/conftest.py: the longest first.
SIDE_BY_SIDE = -n 2 --dist loadfile --no-loadscope-reorder -m 'not cluster'

.PHONY: setup demo test test-cluster check bench docs

setup: $(STAMP)

# The stamp is written last, so that an installation cut short is done again.
$(STAMP): pyproject.toml
	@$(if $(UV),$(with_uv),$(with_pip))
	@touch $@

define with_uv
set -e; \
	[ -x $(BIN)/python ] || uv venv --python '>=3.11' .venv; \
	uv pip install --python $(BIN)/python -e '.[dev]'
endef

define with_pip
set -e; python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo 'make setup: needs uv, or a Python >= 3.11 as one of: $(CANDIDATES)' >&2; exit 1; \
	fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv .venv; \
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
endef

demo: setup
	$(BIN)/dino-lab run experiments/quickstart.yaml

# Hundreds of processes are started, which would each compile the package again.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) plugins

test-cluster: setup
	$(BIN)/python -m pytest -m cluster tests

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@echo $(BIN)/mkdocs build --strict
	@site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && $(BIN)/mkdocs build --quiet --strict --site-dir "$$site"

bench: setup
	$(BIN)/python -m benchmarks

docs: setup
	$(BIN)/mkdocs build --quiet --strict --site-dir site
