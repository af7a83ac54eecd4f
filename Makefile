# Two commands for a fresh machine with Python 3.11 to 3.13, gcc and make:
#   make demo    summarize the sample corpus with the embedded model, through the real job
#   make test    every check: formatting, types, layering, kernels, parity, pipeline
# and, for those who want to see it survive:
#   make chaos   a hundred drawn faults in running jobs: kills, lost machines, crashes between any two steps
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD_TOOLS := setuptools wheel cmake ninja pybind11
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test test-gpu lint chaos model clean

demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/python jobs/summarize.py --output runs/demo

test: $(VENV)/.tested lint
	$(BIN)/python -m pytest

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' '*.hpp' | xargs $(BIN)/clang-format --dry-run -Werror

# On a machine with a GPU: every test that needs one, which elsewhere skips; and the kernels under NVIDIA's memory checker.
test-gpu: $(VENV)/.tested
	PEGASUS_REQUIRE_CUDA=1 $(BIN)/python -m pytest -m cuda
	if command -v compute-sanitizer; then \
	  PEGASUS_REQUIRE_CUDA=1 compute-sanitizer --error-exitcode 1 $(BIN)/python -m pytest -q -m cuda tests/kernels; fi

chaos: $(VENV)/.tested
	$(BIN)/python -m tests.chaos --faults 100 --seed $(or $(SEED),$(shell date +%Y%m%d))

# The embedded model again, from data/: pre-trained on gap sentences, then fine-tuned; it goes on where it was stopped.
# Two processes of one thread each; blocks that the C library keeps, instead of giving them back to the system at each step.
TRAIN := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=4000000000 \
  MALLOC_TRIM_THRESHOLD_=4000000000 OMP_NUM_THREADS=1 \
  $(BIN)/python -m torch.distributed.run --nproc-per-node 2 jobs/finetune.py

model: runs/gap_sentences/train runs/gap_sentences/validation
	$(TRAIN) --recipe pegasus_batch/demo/pretrain.yaml
	$(TRAIN) --recipe pegasus_batch/demo/finetune.yaml

runs/gap_sentences/%: data/debian_synopses/%.parquet | $(VENV)/.installed
	$(BIN)/python jobs/pretrain.py --input $< --output $@ --seed 1

clean:
	rm -rf $(VENV) build runs pegasus_batch/_native*.so *.egg-info

# Editable, so that the source tree is what runs; the extension is built beside it.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt CMakeLists.txt $(shell find csrc -type f)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "pegasus-batch needs Python 3.11 to 3.13; run: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt $(BUILD_TOOLS)
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[test]'
	touch $@
