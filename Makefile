# What developers run. Users need only ./x0. Everything here works on a clean clone.
SHELL := /bin/sh
PY := .venv/bin/python
UV := uv==0.13.9
LOCK := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-header --no-emit-index-url --no-emit-find-links

.PHONY: help setup check lint form types floors tidy format test night attacks fuzz bench bench-pair bench-failover coverage lock wheel wheel-test bpf bpf-about libbpf kernels bare clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup:  ## .venv with the tools for developers
	@./x0 setup --dev

check: lint form types floors tidy  ## lint, form, types, import contracts, house tests (-k: all parts)

lint: setup
	$(PY) -m ruff check .

form: setup
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

floors: setup
	$(PY) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())'

tidy: setup
	$(PY) -m pytest -q tests/house

format: setup  ## bring the tree into form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test:  ## all tests but the long ones (ARGS="-k name")
	@./x0 test $(ARGS)

night:  ## all tests, the long ones too
	@./x0 night $(ARGS)

attacks: setup  ## every attack on a running mesh: what was tried, why refused, what was let in
	$(PY) -m tests.real.attacks

fuzz: setup  ## ten minutes of random bytes for each parser (ARGS="token --seconds 60 --keep")
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r requirements/fuzz.txt
	$(PY) -m tests.fuzz $(ARGS)

BENCH := long_stream rotations revocation outages failover_tcp footprint simulator routes

bench: setup  ## all measurements, about an hour (BENCH=rotations ARGS="--ttl 30"); docs/benchmarks.md
	@status=0; for name in $(BENCH); do $(PY) -m bench.$$name $(ARGS) || status=1; done; \
	$(PY) -m bench.report; exit $$status

bench-pair: setup  ## beside haproxy, stunnel and nginx, in the harness that X0_PROXY_BENCH names
	$(PY) -m bench.proxies $(ARGS)
	$(PY) -m bench.report

bench-failover: setup  ## beside babeld, BIRD and FRR (Debian: babeld bird2 frr), in the harness X0_FAILOVER_BENCH; root
	@status=0; $(PY) -m bench.failover $(ARGS) || status=1; $(PY) -m bench.report; exit $$status

coverage: setup  ## statement coverage of core and wire, at least 95 %
	$(PY) -m pytest -q --ignore=tests/house --ignore=tests/real --cov --cov-report=term --cov-fail-under=95

lock: .venv-lock/bin/uv  ## requirements/*.txt from *.in (UPGRADE=--upgrade for newer versions)
	cd requirements && ../$< $(LOCK) $(UPGRADE) runtime.in -o runtime.txt
	cd requirements && ../$< $(LOCK) $(UPGRADE) dev.in -o dev.txt
	cd requirements && ../$< $(LOCK) $(UPGRADE) fuzz.in -o fuzz.txt

.venv-lock/bin/uv: Makefile
	python3 -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check $(UV)

wheel: setup libbpf  ## dist/*.whl with libbpf, the same bytes for the same commit
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(PY) -m build --wheel --no-isolation

wheel-test: setup libbpf  ## libbpf made twice, and a wheel in an empty environment (root)
	$(PY) -m pytest -q -m "night or not night" tests/edge/kernel/test_libbpf.py

bpf:  ## the kernel's half of a node (clang-19, llvm-19): the same bytes for the same sources
	@bpf/build.sh

bpf-about:  ## build/bpf: the shipped programs with checksum, types (bpftool) and instructions (llvm-19)
	@rm -rf build/bpf && mkdir -p build/bpf && cp src/x0tta6bl4/edge/kernel/mesh.bpf.* build/bpf
	@cd build/bpf && sha256sum --check mesh.bpf.sha256
	@cd build/bpf && /usr/sbin/bpftool btf dump file mesh.bpf.o >mesh.btf.txt
	@cd build/bpf && llvm-objdump-19 --disassemble --no-show-raw-insn mesh.bpf.o >mesh.instructions.txt

libbpf:  ## build/libbpf: the library that wheels bring (cc; its source by apt, or SOURCE=file)
	@bpf/libbpf/build.sh

kernels: setup  ## boot four kernels and try the programs on each (ARGS="--only 6.12", --write, --broken)
	$(PY) -m tests.kernels $(ARGS)

bare:  ## clone into a bare Debian 12 and run CMD there ("./x0 test"), as root and as a user
	tests/bare/run.sh $(CMD)

clean:  ## what can be made again
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
