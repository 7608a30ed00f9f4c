# `make repro` and `make test` are all that a new machine needs: each sets up .venv from the pinned requirements first.
PYTHON ?= python3
VENV := .venv
# Relative, since make takes a space in a path for the end of a name; PATH is one text to make.
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro plan status push share check-cache mend recipe test test-endtoend test-kinds test-architectures test-fuzz test-sharing test-faults lint bench compare lock clean

help:
	@echo "make repro   run what params.yaml changed, up to the report"
	@echo "make plan    write models/dvc.yaml after adding or removing a merge"
	@echo "make status  what is cached here, what the remote has, what would run"
	@echo "make push    send outputs to the DVC remote, and what they are the results of"
	@echo "make share DIR=/path GROUP=team  let a group have a directory as its remote or cache"
	@echo "make check-cache  compare DVC's cache with its checksums, and remove what is damaged"
	@echo "make mend    mend what a full disk has cut off of DVC's own records, if every dvc command fails"
	@echo "make recipe NAME=ensembling  run a recipe of recipes/ in a workspace of its own"
	@echo "make test    formatting, types and tests"
	@echo "make test-endtoend  whole pipelines, run by dvc"
	@echo "make test-kinds  a pipeline of each kind of task, from params.yaml to the report"
	@echo "make test-architectures  the Fisher of every architecture that transformers has, as a table"
	@echo "make test-fuzz  thousands of bad inputs"
	@echo "make test-sharing  tests with several clones and remotes of three kinds"
	@echo "make test-faults  the pipeline under kills, full disks and damaged files: what survived, as a table"
	@echo "make lint    formatting and types only"
	@echo "make bench   timings against training steps and other tools"
	@echo "make compare test the methods that mergekit has too against mergekit's own"
	@echo "make lock    pin the newest allowed versions in requirements.lock"
	@echo "make clean   remove the outputs in the workspace (DVC's cache keeps them) and the environment"

$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $@

repro: plan
	python -m dvc repro

plan: $(INSTALLED)
	python -m stages.plan

status: $(INSTALLED)
	@python -m stages.status

# A colleague's dvc finds results by the run cache, which a plain dvc push leaves out.
push: $(INSTALLED)
	python -m dvc push --run-cache

share: $(INSTALLED)
	@python -m stages.share "$(DIR)" "$(GROUP)"

check-cache: $(INSTALLED)
	python -m stages.check_cache

mend: $(INSTALLED)
	@python -m stages.mend

recipe: $(INSTALLED)
	python -m stages.recipe $(NAME)

test: lint
	python -m pytest -n 2 --dist loadfile --ignore tests/endtoend --ignore tests/fuzz --ignore tests/sharing --ignore tests/faults

test-endtoend: $(INSTALLED)
	python -m pytest -n 2 --dist loadfile tests/endtoend --ignore tests/endtoend/kinds

test-kinds: $(INSTALLED)
	python -m pytest -n 2 --dist loadfile tests/endtoend/kinds

test-architectures: $(INSTALLED)
	python -m tests.architectures

test-fuzz: $(INSTALLED)
	python -m pytest -n 2 tests/fuzz

test-sharing: $(INSTALLED)
	python -m pytest -n 2 --dist loadfile tests/sharing

test-faults: $(INSTALLED)
	python -m pytest -n 2 tests/faults

lint: $(INSTALLED)
	python -m ruff check .
	python -m ruff format --check .
	python -m mypy

bench: $(INSTALLED) $(VENV)/.rivals
	python -m tests.bench

compare: $(INSTALLED) $(VENV)/.rivals
	python -m pytest tests/merging/test_mergekit.py

# Without dependencies: theirs are in the file, and one of them would bring another torch.
$(VENV)/.rivals: $(INSTALLED) tests/bench/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/bench/requirements.txt
	@touch $@

# The local version (+cpu, +cu130) is the index's choice: the lock names the version only.
lock: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-tools
	python -m piptools compile --quiet --upgrade --allow-unsafe --strip-extras --no-header --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --extra gguf --extra lm-eval --extra s3 --extra ssh --extra test --extra lint --output-file requirements.lock pyproject.toml
	sed -i -E 's/^(torch==[0-9.]+)\+.*/\1/' requirements.lock

clean:
	rm -rf $(VENV) data/sources data/tasks results models/*/
