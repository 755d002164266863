# Everything here makes .venv first, where it is absent; Python 3.11+ and the package index are all that it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/switch-tf
QUICKSTART := runs/quickstart
BENCH := runs/bench
LOCK := build/lock
LOCKED_EXTRAS := test cloud cache aot interop docs
# Each test file runs in one of so many processes; TensorFlow takes a gigabyte or two in each of them.
TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: help quickstart test test-all lint format lock bench clean

help:
	@echo "make quickstart   pre-train a small Switch Transformer and a dense T5 on Python's documentation; plots, samples"
	@echo "make test         the tests (minutes)"
	@echo "make test-all     the slow ones too; installs torch for those against Hugging Face, and Beam"
	@echo "make lint         ruff, mypy"
	@echo "make format       ruff format"
	@echo "make lock         constraints.txt, for the packages that setup.py names"
	@echo "make bench        speed, side by side with peers (installs torch; twenty minutes)"
	@echo "make clean        remove .venv, the quick start's runs and the benchmarks' tables"

# t5 brings nightlies that own the same folders as seqio and tensorflow-datasets. switch_tf looks whether they came last,
# and names the repair; here it is made at once, after each call of pip that sees to t5.
define REPAIR_NIGHTLIES
@$(BIN)/python -c 'import switch_tf' 2>/dev/null || { \
  $(BIN)/pip uninstall --quiet -y tfds-nightly seqio-nightly && \
  $(BIN)/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
    tensorflow-datasets==4.9.10 seqio==0.0.20 && $(BIN)/python -c 'import switch_tf'; }
endef

$(VENV)/installed: setup.py constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 ..." >&2; exit 2; }
	@echo "Installing TensorFlow, seqio and t5 into $(VENV): a minute or two, 3.6 GB ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(REPAIR_NIGHTLIES)
	@touch $@

$(VENV)/aot: $(VENV)/installed
	@echo "Installing the compiler of TPUs into $(VENV): 0.7 GB ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[aot]'
	$(REPAIR_NIGHTLIES)
	@touch $@

$(VENV)/interop: $(VENV)/installed
	@echo "Installing torch and transformers into $(VENV) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[interop]'
	$(REPAIR_NIGHTLIES)
	@touch $@

$(VENV)/cache: $(VENV)/installed
	@echo "Installing Beam into $(VENV) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cache]'
	$(REPAIR_NIGHTLIES)
	@touch $@

quickstart: $(VENV)/installed
	$(RUN) train --gin_file=gin/models/switch_tiny_8.gin --gin_file=gin/runs/quickstart.gin \
	  --gin.MODEL_DIR='"$(QUICKSTART)/switch_tiny_8"'
	$(RUN) train --gin_file=gin/models/t5_tiny.gin --gin_file=gin/runs/quickstart.gin \
	  --gin.MODEL_DIR='"$(QUICKSTART)/t5_tiny"'
	@echo
	$(RUN) predict --model_dir=$(QUICKSTART)/switch_tiny_8 --held_out=3
	$(RUN) report $(QUICKSTART)/switch_tiny_8 $(QUICKSTART)/t5_tiny --output=$(QUICKSTART)

test: $(VENV)/aot
	$(PYTEST)

test-all: $(VENV)/interop $(VENV)/aot $(VENV)/cache
	$(PYTEST) -m ''

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# UPGRADE=--upgrade takes the newest releases; else what constraints.txt says stays.
lock: $(LOCK)/bin/uv
	cp constraints.txt $(LOCK)/constraints.txt
	$< pip compile setup.py $(LOCKED_EXTRAS:%=--extra=%) --universal --python-version=3.11 --no-emit-index-url \
	  --no-header --no-annotate --no-emit-package=libtpu $(UPGRADE) --quiet --output-file=$(LOCK)/constraints.txt
	{ grep '^#' constraints.txt; cat $(LOCK)/constraints.txt; } > $(LOCK)/with_head.txt
	mv $(LOCK)/with_head.txt constraints.txt

$(LOCK)/bin/uv:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/pip install --quiet --disable-pip-version-check uv==0.13.9

bench: $(VENV)/interop
	@mkdir -p $(BENCH)
	$(BIN)/python -m benchmarks.feed_forward --json=$(BENCH)/feed_forward.json
	$(BIN)/python -m benchmarks.peers --json=$(BENCH)/peers.json
	$(BIN)/python -m benchmarks.meshes --json=$(BENCH)/meshes.json
	$(BIN)/python -m benchmarks.rematerialization --json=$(BENCH)/rematerialization.json
	$(BIN)/python -m benchmarks.input --json=$(BENCH)/input.json
	$(BIN)/python -m benchmarks.plot --feed_forward=$(BENCH)/feed_forward.json --peers=$(BENCH)/peers.json \
	  --output=$(BENCH)/speed.png

clean:
	rm -rf $(VENV) $(LOCK) $(QUICKSTART) $(BENCH)
