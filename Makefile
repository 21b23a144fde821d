# Two commands: `make demo` and `make test`. `make` alone lists the rest.
# Every step is a file target: what is made already is not made again.

PYTHON ?= python3
# Without RUN a step goes on with the run that was trained or used last; `make train` and `make demo` have one of their own.
LAST   := $(shell cat build/run.txt 2>/dev/null)
RUN    ?= $(if $(filter train demo,$(MAKECMDGOALS)),build/train,$(if $(wildcard $(LAST)/checkpoint.pt),$(LAST),build/train))
# A run that was begun has its configuration in its checkpoint: it needs neither CONFIG nor ARGS to go on.
BEGUN  := $(wildcard $(RUN)/checkpoint.pt)
CONFIG ?= $(if $(BEGUN),,training/presets/shapes.toml)
ARGS   ?=
IMAGE  ?= $(wildcard build/shapes/val/000001.png)
OUT    ?= build/overlay.png
ARCHIVE ?=
VERSION ?=
NAME ?=
WEIGHTS ?=
GRID ?= shapes
EXPERIMENTS_ARGS ?=
DATA_ARGS ?=
FETCH_ARGS ?=
CONVERT_ARGS ?=
CALIBRATE_ARGS ?=
OFFLINE_ARGS ?=
IMAGES ?=
EVALUATE_ARGS ?=
SERVE_ARGS ?=
PREDICT_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=
PROFILE_ARGS ?=
ACCURACY_ARGS ?=
LOAD_ARGS ?=
DOCKER ?= docker
IMAGE_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
GENERATED := client/generated/inference_pb2.py server/light/generated/messages.bin
SHAPES := build/shapes/train.json
FIGURES := build/figures/train.json
# Presets named shapes*.toml and figures*.toml train on drawn data sets; any other file names data of its own. A run that
# goes on without CONFIG looks at what is drawn, and refuses other data than its own.
DATA := $(if $(CONFIG),$(if $(filter shapes%,$(notdir $(CONFIG))),$(SHAPES)) $(if $(filter figures%,$(notdir $(CONFIG))),$(FIGURES)),$(wildcard $(SHAPES) $(FIGURES)))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# torch's threads wait for each other without holding a core, as in a server's worker (server/settings.py, SPIN).
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif
SHELL := /bin/sh
.SHELLFLAGS := -euc
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup data convert train evaluate archive serve ready predict predict-folder stop versions register set-default unregister demo check test docs tools fetch calibrate experiments bench bench-gpu gpu-check bench-training profile accuracy load wheel image clean FORCE

help:                ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-21s %s\n", $$1, $$2}'
	@echo 'Variables: CONFIG=file.toml  ARGS="key=value ..."  RUN=folder of the training (the last one)  IMAGE=photo.jpg  IMAGES=folder'
	@echo '           OUT=overlay.png  ARCHIVE=file.mar  VERSION=2.0  NAME=data set  WEIGHTS=file  PYTHON=python3.11  {DATA,FETCH,CONVERT,CALIBRATE,EXPERIMENTS,OFFLINE,EVALUATE,SERVE,PREDICT,TEST,BENCH,GPU,PROFILE,ACCURACY,LOAD,IMAGE}_ARGS=more flags of that step'

setup: $(VENV)/.stamp-run $(GENERATED)  ## .venv with the pinned packages; the gRPC client's generated code

data: $(SHAPES)      ## draw the default data set into build/shapes

fetch: setup         ## download a known data set and make it ready to train on: NAME=coco_2017
	@test -n "$(NAME)" || { echo "error: name a data set: make fetch NAME=coco_2017 (also coco_2014, lvis_v1, voc_2012, vg3k)" >&2; exit 2; }
	@$(PY) -m training.datasets fetch "$(NAME)" $(FETCH_ARGS)

convert: setup       ## weights of others as a run of its own: WEIGHTS=model.pkl RUN=build/converted CONVERT_ARGS="--classes cat,dog"
	@test -f "$(WEIGHTS)" || { echo "error: WEIGHTS=$(WEIGHTS): name the file: make convert WEIGHTS=model.pkl RUN=build/converted" >&2; exit 2; }
	@test ! -e "$(RUN)/checkpoint.pt" || { echo "error: $(RUN)/checkpoint.pt is there already; name another folder: RUN=build/converted" >&2; exit 2; }
	@$(PY) -m training.recipes.convert --weights "$(WEIGHTS)" --out "$(RUN)/checkpoint.pt" $(CONVERT_ARGS)
	@touch "$(RUN)/finished"

train: $(RUN)/finished  ## train, or go on with a training that was stopped: CONFIG= ARGS= RUN=

evaluate: build/evaluation/results.json  ## AP and AR over A, B and all classes, tables, a plot, a sheet of predictions

calibrate: $(RUN)/finished  ## the mask threshold of classes without masks, measured on classes held out of set A
	@$(PY) -m training.experiments.mask_threshold --checkpoint $(RUN)/checkpoint.pt $(CALIBRATE_ARGS)

experiments: setup   ## a grid of trainings -> build/experiments: GRID=shapes (photos, paper) EXPERIMENTS_ARGS="--dry-run"
	@$(PY) -m training.experiments $(GRID) $(EXPERIMENTS_ARGS)

archive: build/maskx.mar  ## checkpoint -> TorchScript, verified -> build/maskx.mar

serve: build/maskx.mar $(GENERATED)  ## start TorchServe on loopback (SERVE_ARGS="--engine light": the light server); returns when the model answers
	@$(PY) -m server start $(SERVE_ARGS)

predict: setup       ## send an image to the server, write the overlay: IMAGE= OUT=
	@test -n "$(IMAGE)" || { echo "error: name an image: make predict IMAGE=photo.jpg" >&2; exit 2; }
	@test -f "$(IMAGE)" || { echo "error: IMAGE=$(IMAGE): no such file" >&2; exit 2; }
	@mkdir -p "$(dir $(OUT))"
	@$(PY) -m client "$(IMAGE)" --overlay "$(OUT)" $(PREDICT_ARGS)

predict-folder: build/maskx.mar  ## COCO results of every image under IMAGES=, without a server -> build/offline
	@test -n "$(IMAGES)" || { echo "error: name a folder or bucket: make predict-folder IMAGES=photos" >&2; exit 2; }
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m offline.predict --archive build/maskx.mar --images "$(IMAGES)" --out build/offline $(OFFLINE_ARGS)

stop:                ## stop the server
	@if test -d build/serve && test -x $(PY); then $(PY) -m server stop; else echo "no server was started here"; fi

ready: setup         ## say whether the server answers a prediction now
	@$(PY) -m server ready

versions: setup      ## the versions of the model that are loaded
	@$(PY) -m server versions

register: setup      ## load a version beside the others: ARCHIVE=; the server needs SERVE_ARGS=--model-api
	@test -n "$(ARCHIVE)" || { echo "error: name an archive: make register ARCHIVE=build/maskx-2.mar" >&2; exit 2; }
	@$(PY) -m server register --archive "$(ARCHIVE)"

set-default: setup   ## answer with a version where none is named: VERSION=
	@test -n "$(VERSION)" || { echo "error: name a version: make set-default VERSION=2.0 (make versions lists them)" >&2; exit 2; }
	@$(PY) -m server default "$(VERSION)"

unregister: setup    ## remove a version once its requests are answered: VERSION=
	@test -n "$(VERSION)" || { echo "error: name a version: make unregister VERSION=1.0 (make versions lists them)" >&2; exit 2; }
	@$(PY) -m server unregister "$(VERSION)"

# Steps are makes of their own, so that the time of each can be told; nothing is left running at the end.
demo:                ## all of it: setup, data, train, evaluate, archive, serve, predict, stop
	@times=""; served=""; \
	trap 'status=$$?; trap - EXIT; if test -n "$$served"; then $(MAKE) -s stop || true; fi; exit $$status' EXIT; \
	trap 'exit 130' INT TERM; \
	for step in setup data train evaluate archive serve predict; do \
	  echo "== make $$step"; begin=$$(date +%s); \
	  if test $$step = serve; then served=yes; fi; \
	  $(MAKE) --no-print-directory $$step RUN="$(RUN)" || { echo "make demo stopped at 'make $$step'; the reason stands above" >&2; exit 1; }; \
	  times="$$times  $$step $$(($$(date +%s) - begin)) s"; \
	done; \
	echo "wall time:$$times"; \
	echo "masks of $(or $(IMAGE),build/shapes/val/000001.png), as TorchServe answered: $(OUT)"; \
	echo "more of them beside the ground truth: build/evaluation/sheet.png"

check: $(VENV)/.stamp-dev $(GENERATED)  ## ruff, formatting, mypy, the arrows between folders
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy handler model training export server client offline benchmarks tests
	@$(PY) -m pytest -q tests/test_arrows.py

test: $(VENV)/.stamp-dev $(GENERATED)  ## every test, the served ones with a real TorchServe and nginx
	@command -v nginx >/dev/null || $(MAKE) -s build/tools/nginx/sbin/nginx || echo "no nginx could be fetched: the proxy's tests are skipped" >&2
	@command -v chromedriver >/dev/null || $(MAKE) -s build/tools/chromium/chromium || echo "no chromium could be fetched: the page's tests are skipped" >&2
	@$(PY) -m pytest -n 2 --dist loadfile $(TEST_ARGS)

docs: $(VENV)/.stamp-docs  ## the pages of docs/ as a site with a search, which opens from the disk -> build/site
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --clean
	@echo "open build/site/index.html"

tools: build/tools/nginx/sbin/nginx build/tools/chromium/chromium  ## Debian's nginx and chromium for tests, without being root -> build/tools

build/tools/nginx/sbin/nginx:
	@deploy/nginx/fetch.sh build/tools/nginx

build/tools/chromium/chromium:
	@tests/browser/fetch.sh build/tools/chromium

# TorchScript's deprecation is known, see build/maskx.pt below.
bench: setup         ## time and memory against torchvision and the machine's own limit -> benchmarks/results
	@$(PY) -m benchmarks.speed $(BENCH_ARGS)

bench-gpu: setup     ## the same on a GPU, with throughput; without one a short form on the CPU
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m benchmarks.speed --gpu $(GPU_ARGS)

gpu-check: setup     ## whether all of it works on a GPU, and how fast, in 8 minutes: GPU_ARGS="--checkpoint build/train/checkpoint.pt"
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m benchmarks.gpu_check $(GPU_ARGS)

bench-training: setup  ## training's images/s and memory beside torchvision's reference step -> benchmarks/results
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m benchmarks.training $(BENCH_ARGS)

profile: setup       ## a trace of one request that a browser opens -> build/profile
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m benchmarks.speed.trace $(PROFILE_ARGS)

accuracy: build/maskx.pt  ## AP of maskx.pt in each precision, decoded whole and scaled down
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m benchmarks.accuracy $(ACCURACY_ARGS)

load: build/maskx.pt $(GENERATED)  ## requests/s and latencies beside one process, faults, hostile requests: LOAD_ARGS="--soak 20"
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m benchmarks.load $(LOAD_ARGS)

wheel: setup         ## client and server as a wheel, for machines without the repository -> build/wheel
	@$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@ls build/wheel/*.whl

image: build/maskx.mar  ## the serving image and its proxy, with DOCKER=docker or another
	@$(DOCKER) build --target serve -t maskx-serve:1 $(IMAGE_ARGS) .
	@$(DOCKER) build --target proxy -t maskx-proxy:1 $(IMAGE_ARGS) .

clean:               ## remove all that was made but .venv
	@if test -d build/serve && test -x $(PY); then $(PY) -m server stop || true; fi
	@rm -rf build client/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- setup

$(VENV)/.stamp-venv:
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no $(PYTHON) here. Install Python 3.11 to 3.13 (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); 3.11 to 3.13 is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments. Debian: apt-get install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-venv requirements/serve.txt requirements/light.txt requirements/train.txt requirements/client.txt requirements/constraints.txt
	@echo "installing the pinned packages into $(VENV) (several GB: PyTorch comes with its GPU libraries)"
	@$(PY) -m pip install $(foreach f,serve light train client,-r requirements/$(f).txt) || { echo "error: the packages could not be installed; the reason stands above" >&2; exit 1; }
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run $(wildcard requirements/*.txt)
	@$(PY) -m pip install -r requirements/dev.txt || { echo "error: the packages of requirements/dev.txt could not be installed; the reason stands above" >&2; exit 1; }
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-venv requirements/docs.txt requirements/constraints.txt
	@$(PY) -m pip install -r requirements/docs.txt || { echo "error: the packages of requirements/docs.txt could not be installed; the reason stands above" >&2; exit 1; }
	@touch $@

$(GENERATED) &: client/inference.proto server/light/open_inference.proto client/compile_proto.py $(VENV)/.stamp-run
	@$(PY) -m client.compile_proto

# ---- data -> checkpoint -> archive

# Drawn whole or not at all, and not again from the same settings; so its time stamp stays where nothing changed.
$(SHAPES): $(if $(DATA_ARGS),FORCE) | setup
	@$(PY) -m training.drawn shapes --out build/shapes $(DATA_ARGS)

$(FIGURES): | setup
	@$(PY) -m training.drawn figures --out build/figures

# Settings for a run that was begun are compared with its own, which makes it longer, does nothing, or is an error.
$(RUN)/finished: $(DATA) $(if $(BEGUN),$(if $(CONFIG)$(ARGS),FORCE)) | setup build/run.txt
	@$(PY) -m training.train $(if $(CONFIG),--config $(CONFIG)) --resume output.dir=$(RUN) $(ARGS)
	@test -z "$(filter-out FORCE,$?)" && test $@ -nt $(RUN)/checkpoint.pt || touch $@

# Which run was trained last, and the files below were made from.
build/run.txt: FORCE
	@mkdir -p build
	@test "$$(cat $@ 2>/dev/null)" = "$(RUN)" || echo "$(RUN)" > $@

build/evaluation/results.json: $(RUN)/finished build/run.txt $(if $(EVALUATE_ARGS),FORCE)
	@$(PY) -m training.evaluate --checkpoint $(RUN)/checkpoint.pt --out build/evaluation $(EVALUATE_ARGS)

# TorchScript's deprecation is known (see pyproject.toml) and would be the only thing read of this step.
build/maskx.pt: $(RUN)/finished build/run.txt $(shell find model export -name "*.py")
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m export.torchscript --checkpoint $(RUN)/checkpoint.pt --out $@

# The dense parts as machine code of this very machine: COMPILE_ARGS="--precision float32" (see export/compiled.py).
build/maskx.pt2: build/maskx.pt $(if $(COMPILE_ARGS),FORCE)
	@PYTHONWARNINGS=ignore::FutureWarning $(PY) -m export.compiled --torchscript build/maskx.pt --checkpoint $(RUN)/checkpoint.pt --out $@ $(COMPILE_ARGS)

build/maskx.mar: build/maskx.pt $(wildcard handler/*.py serve_config/model-config.yaml)
	@$(PY) -m export.archive --torchscript build/maskx.pt --out $@
