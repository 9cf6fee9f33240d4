# `make` lists the targets. Each makes the environment it needs, from the versions in
# constraints.txt, and makes it again only when those or pyproject.toml have changed.

# The first Python that is new enough, unless PYTHON says which.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
DEVICE ?= cpu
PORT   ?= $(or $(PUSHFORWARD_PORT),8000)
MODELS ?= $(or $(PUSHFORWARD_MODELS),models)
OUT    ?= models

DEVELOPMENT := .venv
SERVING     := .venv-serve$(if $(filter gpu,$(DEVICE)),-gpu)
NO_TORCH    := .venv-no-torch

ifeq ($(filter cpu gpu,$(DEVICE)),)
$(error DEVICE=$(DEVICE): expected cpu or gpu)
endif

.DEFAULT_GOAL := help
.PHONY: help serve install test check train bench up down clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s%s\n", $$1, $$2 }' Makefile

serve: $(SERVING)/.installed ## Serve MODELS=models on PORT=8000 with DEVICE=cpu or gpu
	PUSHFORWARD_MODELS='$(MODELS)' PUSHFORWARD_PORT=$(PORT) \
	PUSHFORWARD_DEVICE=$(if $(filter gpu,$(DEVICE)),cuda,cpu) \
	exec $(SERVING)/bin/python -m service

install: $(DEVELOPMENT)/.installed ## Make .venv with everything: serving, training, tests, checks

# What the service promises is tested where it is served: without torch. Then all the rest. Each of
# the two may find nothing under the ARGS, which pytest says by 5.
WITHOUT_TORCH := tests/service tests/contract tests/conformance
test: $(DEVELOPMENT)/.installed $(NO_TORCH)/.installed ## Run all tests; ENABLE="slow containers" for those too, ARGS= for pytest
	$(NO_TORCH)/bin/python -m pytest $(WITHOUT_TORCH) service $(ENABLE:%=--enable %) $(ARGS) || [ $$? = 5 ]
	$(DEVELOPMENT)/bin/python -m pytest $(WITHOUT_TORCH:%=--ignore %) --ignore service \
		$(ENABLE:%=--enable %) $(ARGS) || [ $$? = 5 ]

check: $(DEVELOPMENT)/.installed ## Check style, types and the one-way imports
	$(DEVELOPMENT)/bin/ruff check
	$(DEVELOPMENT)/bin/ruff format --check
	$(DEVELOPMENT)/bin/mypy
	$(DEVELOPMENT)/bin/lint-imports

train: $(DEVELOPMENT)/.installed ## Train RECIPE=training/recipes/moons-flow.toml into OUT=models; SET="a.b=c", QUICK=1
	@test -n '$(RECIPE)' || { echo 'Which recipe? make train RECIPE=training/recipes/moons-flow.toml'; exit 1; }
	$(DEVELOPMENT)/bin/python -m training '$(RECIPE)' --out '$(OUT)' \
		$(foreach pair,$(SET),--set '$(pair)') $(if $(QUICK),--quick)

bench: $(DEVELOPMENT)/.installed .venv-serve/.installed ## Measure the service and its peers on this machine; ARGS="--peers naive,ray --seconds 5"
	$(DEVELOPMENT)/bin/python -m benchmarks $(ARGS)

up: ## Build and start the service in a container; DEVICE=gpu for the GPU profile
	docker compose --profile $(DEVICE) up --build --detach --wait

down: ## Stop and remove the container
	docker compose --profile '*' down

clean: ## Remove the environments and everything that tools left behind
	rm -rf .venv .venv-* build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is a folder; its extras are listed here, its stamp says that it is complete.
$(DEVELOPMENT)/.installed: EXTRAS := train,test,oracles,check
.venv-serve/.installed:     EXTRAS := cpu
.venv-serve-gpu/.installed: EXTRAS := gpu
$(NO_TORCH)/.installed:     EXTRAS := cpu,test

%/.installed: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' || \
		{ echo 'Pushforward needs Python 3.11 or newer: make ... PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo "Making $(@D) for [$(EXTRAS)]: some minutes, once"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
