# Everything that one does with a checkout. ARGS goes to the command behind it: make demo ARGS="--json result.json"
# CONDOR=sid takes the newest HTCondor instead of trixie's.

ARGS ?=
CONDOR ?=
ifneq ($(CONDOR),)
export HTCONDOR_VPN_TEST_CONDOR := $(CONDOR)
endif

BIN := .venv/bin
BOOTSTRAP := /usr/bin/python3 -EB -m htcondor_vpn.testbed.bootstrap

# Root leaves no files of its own in someone else's checkout.
OWNER := $(shell stat -c %u .)
ifneq ($(shell id -u),$(OWNER))
export PYTHONDONTWRITEBYTECODE := 1
ifeq ($(shell id -u),0)
AS_OWNER := setpriv --reuid=$(OWNER) --regid=$(shell stat -c %g .) --clear-groups
endif
endif

.PHONY: demo testbed test lint bench soak containers releases docs clean python

demo: python
	@$(BOOTSTRAP) $(or $(CONDOR),trixie)
	@$(BIN)/htcondor-vpn demo $(ARGS)

testbed: python
	@$(BOOTSTRAP) $(or $(CONDOR),trixie)
	@$(BIN)/htcondor-vpn testbed shell $(ARGS)

# The tests run on both versions of HTCondor where a difference matters.
test: python
	@$(BOOTSTRAP) --wireguard --apptainer trixie sid
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python tests/phases.py $(ARGS)

lint: python
	@$(BOOTSTRAP)
	$(AS_OWNER) $(BIN)/ruff check .
	$(AS_OWNER) $(BIN)/mypy
	$(AS_OWNER) $(BIN)/lint-imports

bench: python
	@$(BOOTSTRAP) --benchmarks --wireguard $(or $(CONDOR),trixie)
	@$(BIN)/python -m benchmarks $(ARGS)

soak: python
	@$(BOOTSTRAP) $(or $(CONDOR),trixie)
	@$(BIN)/python -m benchmarks.soak $(ARGS)

# Builds the container images of docs/containers and tries them; as root, some minutes.
containers: python
	@$(BOOTSTRAP) --debootstrap
	@$(BIN)/python -m htcondor_vpn.testbed.containers

# Makes root file systems of other Debian releases, as root and once (some minutes), and tries the bundle in them.
releases: python
	@$(BOOTSTRAP) --debootstrap --wireguard
	@$(BIN)/python -m htcondor_vpn.testbed.release_roots
	@HTCONDOR_VPN_TEST_RELEASES=1 $(BIN)/pytest tests/linux/test_bundle_releases.py $(ARGS)

docs: python
	@$(BOOTSTRAP)
	$(AS_OWNER) sh -c 'for page in knobs attributes; do $(BIN)/htcondor-vpn config docs $$page > docs/$$page.md; done'

clean:
	rm -rf .venv .cache *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The set-up itself is written in Python, which a minimal Debian lacks.
python:
	@test -x /usr/bin/python3 || if [ "$$(id -u)" = 0 ]; then \
		apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends python3-venv; \
	else echo "set-up: there is no Python; have an administrator run: apt-get install python3-venv" >&2; exit 1; fi
