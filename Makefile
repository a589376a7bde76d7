# Needs make, a C compiler's runtime and Python 3.11 or later; everything else is installed into .venv.

VENV   := .venv
STAMPS := .stamps
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --quiet --disable-pip-version-check

# The first interpreter that runs and is new enough. Trying is the only sure test: a version manager's shim may be on
# the path for a version that it refuses to run.
NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c $(NEW_ENOUGH) 2>/dev/null && echo "$$p" && break; done)

# What ruff lacks. Left out: 102, which does not know our bounded shields, and 91x, which want a checkpoint on every path
# of private helpers too; the tests check that of the public coroutines.
ASYNC_RULES := ASYNC103,ASYNC104,ASYNC111,ASYNC112,ASYNC113,ASYNC114,ASYNC118,ASYNC119,ASYNC120,ASYNC121,ASYNC122,$\
	ASYNC123,ASYNC126,ASYNC400,ASYNC401,ASYNC900

PYTEST_ARGS  ?=
COVERAGE_MIN ?= 100
TYPED_MIN    ?= 1
BENCH_ARGS   ?=
FUZZ_SECONDS ?= 60
SECONDS      ?= 300
DEMO_ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs wheel-test bench fuzz soak clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# ---------------------------------------------------------------------------------------------------- environments

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "==> Python 3.11 or later is needed and none was found;" \
		"install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c $(NEW_ENOUGH) || { echo "==> $(PYTHON) is older than Python 3.11"; exit 1; }
	@echo "==> creating $(VENV) with $$("$(PYTHON)" -c 'import sys; print("Python", sys.version.split()[0], "at", sys.executable)')"
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { \
		package="$$("$(PYTHON)" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "==> installing $$package"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$$package" >/dev/null; \
		else \
			echo "==> this Python cannot make virtual environments yet; run: sudo apt-get install -y $$package"; exit 1; \
		fi; }
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/package: pyproject.toml $(STAMPS)/venv
	@echo "==> installing pie-anyio with its command line"
	@$(PIP) install --editable '.[cli,fast,ssh]'
	@touch $@

# Without the engine everything still runs on the simulated one.
$(STAMPS)/engine: $(STAMPS)/package
	@echo "==> installing the Pie engine (about 185 MB)"
	@if $(PIP) install --editable '.[engine]'; then $(MAKE) --no-print-directory -s vulkan; else \
		echo "==> the engine's wheel cannot be installed here; going on without the real engine"; fi
	@touch $@

# The engine runs on a software Vulkan device where there is no other.
.PHONY: vulkan
vulkan:
	@if ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json 2>/dev/null | grep -q . && \
		{ ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | grep -q 'libvulkan\.so\.1'; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "==> installing a software Vulkan device (Mesa, about 150 MB)"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			mesa-vulkan-drivers libvulkan1 >/dev/null; } || echo "==> that failed; going on without the real engine"; \
	else \
		echo "==> no Vulkan device; for the real engine run: sudo apt-get install -y mesa-vulkan-drivers libvulkan1"; \
	fi

$(STAMPS)/group-%: $(STAMPS)/package
	@echo "==> installing what '$*' needs"
	@$(PIP) install --group $*
	@touch $@

# ----------------------------------------------------------------------------------------------------------- targets

demo: $(STAMPS)/engine ## see an evaluation from end to end, on the real engine where it runs
	@$(VENV)/bin/pie-anyio demo $(DEMO_ARGS)

test: $(STAMPS)/engine $(STAMPS)/group-test ## run all tests on all event loops, with branch coverage
	@echo "==> tests"
	@rm -f .coverage .coverage.*
	@$(PY) -m coverage run -m pytest $(PYTEST_ARGS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report --fail-under=$(COVERAGE_MIN)

lint: $(STAMPS)/group-lint ## check style and structured-concurrency rules
	@echo "==> ruff"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@echo "==> flake8-async"
	@$(VENV)/bin/flake8-async --anyio --enable $(ASYNC_RULES) $$(find src -name '*.py')

format: $(STAMPS)/group-lint ## format the code
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

# In --verifytypes mode pyright passes over --pythonpath: it asks the first Python on the path for its packages, and
# where those are not ours it takes every class of theirs for unknown.
types: $(STAMPS)/group-lint $(STAMPS)/group-test ## check types with mypy and pyright, and that the public interface is complete
	@echo "==> mypy"
	@$(PY) -m mypy src tests
	@echo "==> pyright"
	@$(PY) -m pyright --pythonpath $(PY)
	@echo "==> pyright --verifytypes"
	@PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pyright --ignoreexternal --verifytypes pie_anyio --outputjson \
		> $(STAMPS)/typed.json; $(PY) .ci/typed.py $(STAMPS)/typed.json $(TYPED_MIN)

docs: $(STAMPS)/group-docs ## build the documentation, warnings being errors
	@echo "==> docs"
	@$(PY) -m sphinx -q -W -n --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel-test: $(STAMPS)/venv ## build the wheel and test it where the sources cannot be imported
	@echo "==> wheel"
	@rm -rf dist && $(PIP) wheel --no-deps --wheel-dir dist .
	@sh .ci/wheel-test "$(PY)" dist/*.whl

bench: $(STAMPS)/package $(STAMPS)/group-bench ## run the benchmarks
	@$(PY) -m benchmarks $(BENCH_ARGS)

# Each check in turn, with new cases until its time is over; then led by coverage, where atheris has a wheel.
fuzz: $(STAMPS)/group-test ## throw damaged conversations at the protocol cores (FUZZ_SECONDS=60 for each check)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest -q -o faulthandler_timeout=0 tests/fuzz
	@$(PIP) install --group fuzz 2>/dev/null || true
	@if $(PY) -c 'import atheris' 2>/dev/null; then for target in client engine; do \
		$(PY) -m tests.fuzz.guided $$target $(FUZZ_SECONDS) || exit 1; done; \
	else echo "==> atheris has no wheel for this Python; that part is left out"; fi

soak: $(STAMPS)/package ## hold a mixed load on both loops (SECONDS=300 for each) and see that memory, files and tasks stay flat
	@$(PY) -m benchmarks.soak --seconds $(SECONDS)

clean: ## remove everything that was built or installed here
	@rm -rf $(VENV) $(STAMPS) .cache build dist docs/_build .coverage .coverage.* htmlcov \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
