# Everything runs in .venv, made from requirements.lock on first use.
PYTHON ?= python3
PARAMS ?= params/demo.yaml
RUN ?= runs/demo
SITE ?= docs-build
BIN := .venv/bin
READY := .venv/.ready
SAVING := --FileContentsManager.post_save_hook=trait_kit.explore.saving.same_to_git

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lab lint docs lock

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## install everything into .venv; then: source .venv/bin/activate

demo: $(READY)  ## run the whole experiment (PARAMS=params/demo.yaml) and write runs/demo/report.html
	$(BIN)/trait-kit run $(PARAMS)

test: $(READY)  ## run the tests (minutes; what CI runs)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)  ## run the slow tests too
	$(BIN)/python -m pytest

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab $(SAVING) notebooks/01_domain_classifier.ipynb

lint: $(READY)  ## check format and style, and count the lines of every chapter
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m pytest -q tests/test_house.py

# Building fetches nothing. A browser fetches MathJax for the formulas, and shows their TeX where it cannot
docs: $(READY)  ## a finished run's notebooks and report as web pages in docs-build/ (RUN=runs/demo)
	$(BIN)/jupyter nbconvert --to html --output-dir $(SITE) --log-level WARN --HTMLExporter.require_js_url= $(RUN)/notebooks/0?_*.ipynb
	sed -i.bak -E 's/href="(0[1-6]_[a-z_]+)\.ipynb/href="\1.html/g' $(SITE)/0?_*.html && rm $(SITE)/*.bak
	cp $(RUN)/report.html $(SITE)/

lock:  ## resolve pyproject.toml afresh and rewrite requirements.lock
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0
	.venv-lock/bin/python -m pip install --quiet -e '.[all]'
	.venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock
	rm -rf .venv-lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "trait-kit needs Python >= 3.11, and $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@echo "Installing the pinned packages into .venv (once, a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@if git rev-parse --git-dir >/dev/null 2>&1; then git config filter.nbstripout.clean "$(CURDIR)/$(BIN)/nbstripout --keep-id --extra-keys metadata.language_info"; fi
	@touch $@
