# make demo: set everything up and inspect a procedural bucket.   make test: set everything up and run all tests.
# Set-up goes through uv, bootstrapped inside .venv; UV_FIND_LINKS lets uv see local wheels where pip was told of some.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export RAY_USAGE_STATS_ENABLED = 0

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test test-all lint faults bench bundles clean setup requirements browser serve

demo: $(VENV)/.done
	$(BIN)/python jobs/demo.py --folder $(DEMO)

test: $(VENV)/.done .venv-s3/.done .venv-llm/.done browser
	$(BIN)/python -m pytest -m "not slow and not full"

test-all: $(VENV)/.done .venv-s3/.done .venv-llm/.done browser
	$(BIN)/python -m pytest -m "not full"

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The fault tests at their full sizes, with a table of what they measured: build/faults.md, and docs/reliability.md.
faults: $(VENV)/.done .venv-s3/.done
	ZSAD_FAULTS=full ZSAD_REQUIRE_S3=1 $(BIN)/python -m pytest --timeout 1800 tests/faults
	$(BIN)/python -m pytest --timeout 1800 -m full --ignore tests/faults tests

bench: $(VENV)/.done
	$(BIN)/python benchmarks/throughput.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_cache.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_scaling.py

# The learned bundles that are shipped over nano; again after every change of its weights.
bundles: $(VENV)/.done
	$(BIN)/python jobs/train_prompts.py --config zsad/nano/bundles/faprompt.toml --restart
	$(BIN)/python jobs/train_prompts.py --config zsad/nano/bundles/dapo.toml --restart

# The endpoint on 127.0.0.1:8000; ZSAD_SERVE_CONFIG names its settings (docs/http.md).
serve: $(VENV)/.done
	env $$(cat serve/ray.env) $(BIN)/serve run serve.app:app

setup: $(VENV)/.done .venv-s3/.done .venv-llm/.done

$(BIN)/uv:
	$(shell command -v $(PYTHON) || echo python3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.done: requirements.txt pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# The S3 server of the tests lives in an environment of its own: its dependencies must not touch zsad's.
.venv-s3/.done: requirements-s3.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-s3
	$(BIN)/uv pip install --quiet --only-binary :all: --python .venv-s3/bin/python -r requirements-s3.txt
	touch $@

# The language model lives in an environment of its own, because vLLM pins torch. Where there is a local CPU wheel of
# torch it is taken; elsewhere torch brings its CUDA libraries, which the list therefore leaves out.
LLM_UV := $(BIN)/uv --config-file tests/llm/uv.toml
.venv-llm/.done: requirements-llm.txt tests/llm/uv.toml | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-llm
	$(LLM_UV) pip install --quiet --only-binary :all: --python .venv-llm/bin/python -r requirements-llm.txt
	$(BIN)/uv pip install --quiet --python .venv-llm/bin/python --no-deps --editable .
	touch $@

# The page's tests drive Debian's chromium. Without root or apt they are skipped, with a reason; see ZSAD_REQUIRE_BROWSER.
browser:
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get install -y -qq --no-install-recommends chromium || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }; } >/dev/null 2>&1 \
		|| echo "chromium can't be installed; tests of the web page will be skipped"; fi

requirements: | $(BIN)/uv
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header \
		pyproject.toml --extra test --output-file requirements.txt
	env -u UV_FIND_LINKS $(LLM_UV) pip compile --quiet --upgrade --python-version 3.11 --no-emit-index-url --no-header \
		--annotation-style line tests/llm/requirements.in | grep -vE '^(nvidia|cuda)-' > requirements-llm.new
	mv requirements-llm.new requirements-llm.txt

clean:
	rm -rf $(VENV) .venv-s3 .venv-llm $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
