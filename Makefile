# Three commands that need nothing but Python 3.11 and make; each sets up .venv by itself the first time.
#   make app       opens the app that compares adapters in a browser, on this machine alone
#   make compare   adapts the embedded models, to handwritten digits with eight methods and to a style of drawing with
#                  three, and compares them
#   make test      style, types, import rules and every test
# PYTHON=/path/to/python chooses the interpreter that .venv is made with.

PYTHON ?= python3.11 python3
BIN := .venv/bin

.PHONY: app compare test clean

app: .venv/ready
	$(BIN)/peft-compare --open

compare: .venv/ready
	$(BIN)/vision-peft compare --recipe digits --methods full,linear_probe,bitfit,ln_tuning,lora,ssf,adapter_plus,snell
	$(BIN)/diffusion-peft compare --recipe style --methods difffit,lora,sara

# One thread a process: two pytest workers share the cores instead of fighting over them.
test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# The marker "installing" becomes "ready" at the very end; a .venv that still has it was interrupted and is made afresh.
.venv/ready: pyproject.toml constraints.txt
	@set -e; \
	found=; \
	for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "error: Python 3.11 or newer is needed; none among: $(PYTHON)." \
	        "Install it (on Debian: apt install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "error: $$found cannot make a virtual environment without its venv module." \
	        "Install it (on Debian: apt install python3-venv) and repeat" >&2; \
	    exit 1; \
	fi; \
	if [ -e .venv/installing ]; then rm -rf .venv; fi; \
	mkdir -p .venv; \
	rm -f .venv/ready; \
	touch .venv/installing; \
	echo "Setting up .venv with $$("$$found" --version), this once; torch is large, so it takes some minutes."; \
	"$$found" -m venv .venv; \
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]' --constraint constraints.txt; \
	mv .venv/installing .venv/ready

clean:
	rm -rf .venv build dist
