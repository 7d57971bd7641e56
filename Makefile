# make demo    a newcomer's first command: environment, install, annotated demonstration
# make test    all tests            make check   format, lint, types, import directions
# make bench   frames a second by stage, against a naive loop
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RESULT = demo-result

.PHONY: demo test check bench clean

demo: $(VENV)/edge.done
	@mkdir -p $(RESULT)
	$(BIN)/maskfer-edge run --source demo --headless --overwrite \
		--record $(RESULT)/demo.mp4 --jsonl $(RESULT)/demo.jsonl
	@echo "The annotated video lies in $(RESULT)/demo.mp4, its results as JSON lines in $(RESULT)/demo.jsonl"

# the tools that check deploy/ are looked for by name; what is compiled once need not be again by each program that is started
test: $(VENV)/dev.done
	env -u PYTHONDONTWRITEBYTECODE PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest

check: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.done
	$(BIN)/python tests/edge/bench_edge.py
	$(BIN)/python tests/trainer/bench_masks.py

clean:
	rm -rf $(VENV) $(RESULT)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "python3 cannot make environments; run: sudo apt install -y python3-venv" >&2; exit 1; }

$(VENV)/edge.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev.done: pyproject.toml | $(VENV)/bin/python
	@echo "Installing TensorFlow, dlib and the tools; this takes some minutes the first time."
	# most of it is never imported; what is, is compiled then
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[dev]"
	@touch $@ $(VENV)/edge.done
