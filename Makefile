# Every target creates .venv first where it is absent, which needs Python 3.11 or newer and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/switch-tf
QUICKSTART := runs/quickstart
# Both models at a time, each on a core, where there are two.
QUICKSTART_JOBS := $(shell $(PYTHON) -c 'import os; print(min(2, os.cpu_count()))')
# Greedily, models this small repeat themselves.
SAMPLING := --gin.DECODER='"sample"' --gin.TOP_P=0.7 --gin.TEMPERATURE=0.7
BENCH := runs/bench
SOAK := runs/soak
SHELL_SCRIPTS := .ci/run tpu/jobs/startup.sh $(wildcard tests/programs/*.sh)
LOCK := build/lock
SITE := build/site
LOCKED_EXTRAS := test cloud cache aot interop serve docs
# Test files are spread over this many processes, each of which needs one or two gigabytes for TensorFlow.
TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: help quickstart test test-all lint format docs lock bench soak clean

help:
	@echo "make quickstart   pre-train a small Switch Transformer and a dense T5 on docstrings, with plots and samples"
	@echo "make test         run the tests (minutes)"
	@echo "make test-all     run the slow tests too; installs torch (to compare with Hugging Face) and Beam"
	@echo "make lint         check with ruff, mypy and shellcheck"
	@echo "make format       format with ruff"
	@echo "make docs         build the documentation into $(SITE)"
	@echo "make lock         update constraints.txt after a change to setup.py"
	@echo "make bench        measure speed, beside Hugging Face and Mesh TensorFlow (installs torch; an hour)"
	@echo "make soak         train 20,000 tiny steps, undisturbed and with 100 kills, and compare (hours)"
	@echo "make clean        remove .venv, the quick start's runs, results of bench and soak and the built documentation"

# t5 depends on nightlies that overwrite the files of seqio and tensorflow-datasets. `import switch_tf` fails if they were
# installed last (switch_tf/installation.py); this repairs the environment after each pip call that may install them.
define REPAIR_NIGHTLIES
@$(BIN)/python -c 'import switch_tf' 2>/dev/null || { \
  $(BIN)/pip uninstall --quiet -y tfds-nightly seqio-nightly && \
  $(BIN)/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
    tensorflow-datasets==4.9.10 seqio==0.0.20 && $(BIN)/python -c 'import switch_tf'; }
endef

$(VENV)/installed: setup.py constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 ..." >&2; exit 2; }
	@echo "Installing TensorFlow, seqio and t5 into $(VENV) (3.6 GB, a minute or two) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(REPAIR_NIGHTLIES)
	@touch $@

$(VENV)/aot: $(VENV)/installed
	@echo "Installing the TPU compiler into $(VENV) (0.7 GB) ..."
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

$(VENV)/docs: $(VENV)/installed
	@echo "Installing mkdocs into $(VENV) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(REPAIR_NIGHTLIES)
	@touch $@

quickstart: $(VENV)/installed
	$(BIN)/python -m tasks.docstrings
	$(RUN) study gin/studies/quickstart.gin --jobs=$(QUICKSTART_JOBS)
	@echo
	$(RUN) predict --model_dir=$(QUICKSTART)/16_experts-seed0 --held_out=3 $(SAMPLING)
	$(RUN) report $(QUICKSTART)/16_experts-seed0 $(QUICKSTART)/dense-seed0 --output=$(QUICKSTART)

test: $(VENV)/aot
	$(PYTEST)

test-all: $(VENV)/interop $(VENV)/aot $(VENV)/cache
	$(PYTEST) -m ''

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --shell=bash $(SHELL_SCRIPTS)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable keeps the theme from printing an advertisement among the warnings.
docs: $(VENV)/docs mkdocs.yml
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir=$(SITE)
	@echo "Written: $(SITE)/index.html"

# With UPGRADE=--upgrade: the newest releases. Otherwise the versions in constraints.txt stay.
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
	$(BIN)/python -m benchmarks.startup --json=$(BENCH)/startup.json
	$(BIN)/python -m benchmarks.peers --json=$(BENCH)/peers.json
	$(BIN)/python -m benchmarks.peers --dtype=bfloat16 --things step --json=$(BENCH)/peers_bfloat16.json
	$(BIN)/python -m benchmarks.precision --json=$(BENCH)/precision.json
	$(BIN)/python -m benchmarks.meshes --json=$(BENCH)/meshes.json
	$(BIN)/python -m benchmarks.rematerialization --json=$(BENCH)/rematerialization.json
	$(BIN)/python -m benchmarks.input --json=$(BENCH)/input.json
	$(BIN)/python -m benchmarks.router_statistics
	$(BIN)/python -m benchmarks.serving --json=$(BENCH)/serving.json
	$(BIN)/python -m benchmarks.plot --feed_forward=$(BENCH)/feed_forward.json --peers=$(BENCH)/peers.json \
	  --output=$(BENCH)/speed.png

# With SOAK_FLAGS='--steps=300 --kills=3 --kills_in_writes=1': a sample of minutes.
soak: $(VENV)/installed
	$(BIN)/python -m benchmarks.soak --folder=$(SOAK) $(SOAK_FLAGS)

clean:
	rm -rf $(VENV) $(LOCK) $(SITE) $(QUICKSTART) $(BENCH) $(SOAK)
