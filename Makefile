# Two commands set everything up: `make demo` and `make test`. They need Python 3.10 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# test processes; each holds PyTorch, 1 GB or more
JOBS ?= 2
# of `make fuzz`, all readers together
FUZZ_SECONDS ?= 3600
DEMO := exported/u2netp-demo-fp16
# a warning is an error; the variable silences mkdocs-material's notice of its successor
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: demo test check docs docs-reference fuzz gpu clean

demo: $(VENV)/.demo-installed
	$(BIN)/u2export onnx --model u2netp-demo --fp16
	$(BIN)/u2export openvino --model u2netp-demo --fp16
	$(BIN)/u2export tensorrt --model u2netp-demo --fp16
	$(BIN)/u2export run $(DEMO).onnx weights/demo-picture.jpg --out exported/demo-mask.png
	$(BIN)/u2export run $(DEMO).xml weights/demo-picture.jpg --out exported/demo-mask-openvino.png
	$(BIN)/u2export run $(DEMO).onnx weights/demo-picture.jpg --out exported/demo-cutout.png --cutout
	$(BIN)/u2export inspect $(DEMO).onnx
	$(BIN)/u2export inspect $(DEMO).xml
	$(BIN)/u2export backends
	@$(BIN)/python -c "import u2export.core.registry as r, pathlib; c = r.open_artifact(pathlib.Path('$(DEMO).xml')).checks; print('OpenVINO against PyTorch, executed here:', c['executed']); print('against PyTorch, with half-precision arithmetic emulated:', c['emulated_fp16'])"
	$(BIN)/u2export parity torch $(DEMO).onnx $(DEMO).xml --html exported/demo-parity.html
	$(BIN)/u2export bench $(DEMO).onnx $(DEMO).xml --duration 10 --json exported/demo-bench.json --html exported/demo-bench.html
	$(BIN)/u2export recommend exported/demo-bench.json --min-iou 0.99
	@echo "Look at exported/demo-mask.png and exported/demo-cutout.png beside weights/demo-picture.jpg"
	@echo "exported/demo-parity.html shows the masks, exported/demo-bench.html the measurements"

test: check
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(DOCS)

# the pages of docs/ into site/, to be opened from the disk
docs: $(VENV)/.test-installed
	$(DOCS)
	@echo "open site/index.html"

# the reference pages that come from the command line and the schemas
docs-reference: $(VENV)/.test-installed
	$(BIN)/python docs/generate_reference.py

# goes on where a killed one stopped; what it finds lies in .fuzz/
fuzz: $(VENV)/.fuzz-installed
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

# On a machine with an NVIDIA GPU and a CUDA build of PyTorch, which is used as it is.
gpu: $(VENV)-gpu/.installed
	$(VENV)-gpu/bin/python benchmarks/gpu.py

$(VENV)-gpu/.installed: pyproject.toml
	$(PYTHON) -m venv --system-site-packages $(VENV)-gpu
	$(VENV)-gpu/bin/python -m pip install --quiet -e '.[dev]'
	# where these two cannot be had, their rows say so: remove $(VENV)-gpu to try again
	-$(VENV)-gpu/bin/python -m pip install --quiet -e '.[tensorrt]'
	# instead of the CPU's package, whose files have the same names
	-$(VENV)-gpu/bin/python -m pip install --quiet --force-reinstall --no-deps onnxruntime-gpu
	@touch $@

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing u2export with PyTorch, onnxruntime, OpenVINO and TensorRT-RTX into $(VENV): a minute or more"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing u2export with everything its tests need into $(VENV): a minute or more"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo-installed

$(VENV)/.fuzz-installed: $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(VENV)-gpu build dist site .mypy_cache .ruff_cache .pytest_cache .fuzz
