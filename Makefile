# What a fresh clone needs: `make demo`, `make test`. Everything happens in .venv.
VENV   := .venv
BIN    := $(VENV)/bin
# The newest Python from 3.11 on that is there; override with `make PYTHON=python3.12 …`.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# Named one by one: the package's folder is the repository's root, which holds more than the package.
TYPED  := -p ldvid.commands -p ldvid.configs -p ldvid.metrics -p ldvid.pipeline -p ldvid.stages -p ldvid.training -m ldvid.errors -m ldvid.cli

.PHONY: demo test check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.run.stamp
	@mkdir -p out
	$(BIN)/ldvid swap examples/clip.mp4 --source examples/face.png --output out/demo.mp4 --overwrite
	@echo
	@echo "The swapped clip is $(CURDIR)/out/demo.mp4, the record of how it was made out/demo.mp4.json,"
	@echo "how it went out/demo.mp4.report.html"

test: $(VENV)/.dev.stamp
	$(BIN)/pytest

check: $(VENV)/.dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy
	ln -sfn "$(CURDIR)" build/mypy/ldvid
	cd build/mypy && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" $(TYPED)
	$(BIN)/pytest

# The others need pictures or clips that don't ship; their first lines say which.
BENCH := $(filter-out $(patsubst %,benchmarks/%.py,detector_recall pairs_split shots),$(wildcard benchmarks/*.py))

bench: $(VENV)/.dev.stamp
	for script in $(BENCH); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf out build

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "ldvid needs Python 3.11 or newer; none was found (make PYTHON=/path/to/python)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Installed anew whenever what is to be installed changed.
$(VENV)/.run.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.run.stamp
