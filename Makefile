# make demo: train SemPPL on digits and look at it.  make test: the tests.
# make docs: the documentation, build/docs/index.html.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all lint docs audit clean

demo: $(READY)
	$(BIN)/python -m semppl_jax.main --config=experiments/digits.py --workdir=runs/digits

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not long"

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Warnings are errors; nothing is loaded from elsewhere.
docs: $(READY)
	$(BIN)/python -m pip install --quiet -r docs/requirements.txt -c constraints.txt
	rm -rf build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

# Known weaknesses of the pinned versions; asks the package index.
audit: $(READY)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

# The stamp is written last: an install that broke off is taken up again.
$(READY): requirements.txt constraints.txt setup.py
	$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {v}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $(READY)

clean:
	rm -rf .venv runs
