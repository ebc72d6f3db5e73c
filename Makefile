# Everything one runs in this repository. `make` alone says what there is.
PYTHON ?= $(shell command -v python3.11 || echo python3)
HOST_PYTHON := .host/venv/bin/python
CHECKPOINT := .host/ComfyUI/models/checkpoints/minicanvas.safetensors
PORT ?= 8188
ARGS ?=

.PHONY: $(shell sed -nE 's/^([a-z0-9-]+):.*/\1/p' Makefile)

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 26

setup: ## a pinned ComfyUI for CPU in .host/ (some minutes once, nothing to do after that)
	@$(PYTHON) tools/setup_host.py

test: ## every test, in a real ComfyUI and a real browser; ARGS="-k erase" picks
	@$(PYTHON) tools/setup_host.py --tests --with-browser
	@$(MAKE) --no-print-directory checkpoint
	OMP_NUM_THREADS=1 $(HOST_PYTHON) -m pytest tests -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		--durations 20 $(ARGS)

test-webui: ## the tests in a real A1111 or Forge: WEBUI_PATH=a checkout of one, with its environment in venv/
	@$(PYTHON) tools/setup_host.py --tests --with-browser
	OMP_NUM_THREADS=1 $(HOST_PYTHON) -m pytest -rs tests/host/test_webui_host.py $(ARGS)

demo: setup checkpoint ## erase a concept from a real model and look at the pictures
	$(HOST_PYTHON) -m tools.demo $(ARGS)

demo-ui: setup checkpoint ## the same in ComfyUI's page, opened on http://127.0.0.1:8188 (PORT=...), until Ctrl-C
	$(HOST_PYTHON) -m tools.demo_ui $(PORT) $(ARGS)

bench-minicanvas: setup checkpoint ## how well concepts are erased, and what else changes
	$(HOST_PYTHON) -m benchmarks.minicanvas.bench $(ARGS)

bench-methods: setup checkpoint ## our training and selection against the papers', three seeds each (hours on a CPU)
	$(HOST_PYTHON) -m benchmarks.minicanvas.methods $(ARGS)

bench-find: setup checkpoint ## how well a concept is erased that was found from 32 pictures
	$(HOST_PYTHON) -m benchmarks.minicanvas.find $(ARGS)

bench-words: setup checkpoint ## what one word does on the first day, with nothing chosen (ARGS=--webui: in the sidebar)
	$(HOST_PYTHON) -m benchmarks.minicanvas.words $(ARGS)

bench-swap: setup checkpoint ## how well one concept is put in the place of another
	$(HOST_PYTHON) -m benchmarks.minicanvas.swap $(ARGS)

bench-strength: setup checkpoint ## how evenly a concept goes as its strength rises
	$(HOST_PYTHON) -m benchmarks.minicanvas.strength $(ARGS)

bench-pointing: setup checkpoint ## where the concept map says a thing is, beside attention to its word
	$(HOST_PYTHON) -m benchmarks.minicanvas.pointing $(ARGS)

bench-see: bench-pointing bench-swap bench-strength ## the three above, one after the other

bench-attack: setup checkpoint ## how well an erasure holds against who wants the concept back
	$(HOST_PYTHON) -m benchmarks.minicanvas.attack $(ARGS)

bench-places: setup checkpoint ## what removed and touched say beside the judge, by places, neurons and strengths
	$(HOST_PYTHON) -m benchmarks.minicanvas.places $(ARGS)

bench-voting: setup checkpoint ## whether the places tell together that a prompt says a concept, better than each alone
	$(HOST_PYTHON) -m benchmarks.minicanvas.voting $(ARGS)

bench-overhead: setup checkpoint ## what erasing costs in time and memory
	$(HOST_PYTHON) -m benchmarks.overhead $(ARGS)

bench-full-size: setup ## Erase Words on a model of SD 1.5's or SDXL's size: model calls, time, memory
	$(HOST_PYTHON) -m benchmarks.full_size $(ARGS)

bench-unlearncanvas: ## the papers' benchmark, for who has its weights, in your ComfyUI: PYTHON=its Python ARGS="--help"
	$(PYTHON) -m benchmarks.published.unlearncanvas $(ARGS)

bench-i2p: ## what NudeNet finds in I2P's pictures without and with a concept erased: PYTHON=... ARGS="--help"
	$(PYTHON) -m benchmarks.published.i2p $(ARGS)

bench-training: ## how fast SAEs train, and how well, beside three other libraries
	@$(PYTHON) tools/setup_host.py --peers
	$(HOST_PYTHON) -m benchmarks.training $(ARGS)

checkpoint: $(CHECKPOINT) ## assemble the small model of the demo and the benchmarks

$(CHECKPOINT): $(wildcard benchmarks/minicanvas/weights/*) | setup
	$(HOST_PYTHON) -m benchmarks.minicanvas.checkpoint .host/ComfyUI/models
