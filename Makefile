# Each target is a command that a person could type. `make` or `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help run test review lint fmt clippy clippy-gateway clippy-stubs docs deny unused openapi field field-install field-run field-reproduce

help:           ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*##/  \1  /' | expand -t 20

run:            ## the main job: start database, stubs and gateway, run all cases, write a report
	cargo run --release -- run

test:           ## all tests
	cargo test --workspace

review:         ## look at changed snapshots one by one, and accept or reject each
	@command -v cargo-insta >/dev/null || { \
	  echo "cargo-insta is missing: install it with 'cargo install cargo-insta --locked',"; \
	  echo "or accept every change with 'INSTA_UPDATE=always cargo test' and read 'git diff snapshots'."; exit 1; }
	cargo insta review

lint: fmt clippy clippy-gateway clippy-stubs docs deny unused ## every check that runs no test

fmt:            ## formatting
	cargo fmt --all --check

clippy:         ## clippy; every warning is an error
	cargo clippy --workspace --all-targets --all-features -- -D warnings

clippy-gateway: ## clippy on the gateway without harness and suites
	cargo clippy --no-default-features -- -D warnings

clippy-stubs:   ## clippy on what a user of the stubs alone compiles
	cargo clippy -p gauntlet-harness --no-default-features -- -D warnings

docs:           ## rustdoc; every warning is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

deny:           ## licences, sources and banned crates of the dependencies
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: install it with 'cargo install cargo-deny --locked'."; exit 1; }
	cargo deny --all-features check bans licenses sources

unused:         ## dependencies that nothing uses
	@command -v cargo-machete >/dev/null || { echo "cargo-machete is missing: install it with 'cargo install cargo-machete --locked'."; exit 1; }
	cargo machete

openapi:        ## validity of the OpenAPI document (needs Python 3)
	.ci/openapi

FIELD := $(CURDIR)/target/field
FIELD_REPORTS := $(FIELD)/reports
FIELD_GATEWAYS := litellm portkey lm-proxy modelswitch crabllm
FIELD_RUN := cargo run --release -- run --database sqlite
field: field-install field-run field-reproduce ## install other gateways into target/field, examine them, write docs/field.md (needs Python 3.11, Node 20)
	cargo run --release --example field -- docs/field-notes.toml $(foreach g,$(FIELD_GATEWAYS),$(FIELD_REPORTS)/$(g))

field-install: # modelswitch 0.4.4 does not start with a newer FastAPI, nor Portkey with a newer server of Hono
	python3 -m venv $(FIELD)/litellm && $(FIELD)/litellm/bin/pip install -q 'litellm[proxy]' opentelemetry-sdk opentelemetry-exporter-otlp
	python3 -m venv $(FIELD)/lm-proxy && $(FIELD)/lm-proxy/bin/pip install -q lm-proxy
	python3 -m venv $(FIELD)/modelswitch && $(FIELD)/modelswitch/bin/pip install -q modelswitch 'fastapi<0.116'
	mkdir -p $(FIELD)/portkey && echo '{"private":true,"dependencies":{"@portkey-ai/gateway":"*"},"overrides":{"@hono/node-server":"1.13.8"}}' > $(FIELD)/portkey/package.json
	npm install --prefix $(FIELD)/portkey --no-audit --no-fund
	cargo install crabllm --locked --root $(FIELD)/crabllm

field-run field-reproduce: export GAUNTLET_LITELLM = $(FIELD)/litellm/bin/litellm
field-run field-reproduce: export GAUNTLET_PORTKEY = $(FIELD)/portkey/node_modules/@portkey-ai/gateway
field-run field-reproduce: export GAUNTLET_LM_PROXY = $(FIELD)/lm-proxy/bin/python
field-run field-reproduce: export GAUNTLET_MODELSWITCH = $(FIELD)/modelswitch/bin/modelswitch
field-run field-reproduce: export GAUNTLET_CRABLLM = $(FIELD)/crabllm/bin/crabllm

field-run: # the exit code of a run is 1 where a gateway fails a case
	-for g in $(FIELD_GATEWAYS); do $(FIELD_RUN) --target $$g --report $(FIELD_REPORTS)/$$g; done

field-reproduce: # the exit code of each run.sh is 1 where a failure is reproduced
	cargo build --release
	-for g in $(FIELD_GATEWAYS); do \
	  target/release/gauntlet reproduce $(FIELD_REPORTS)/$$g --all -o $(FIELD_REPORTS)/$$g/reproduce && sh $(FIELD_REPORTS)/$$g/reproduce/run.sh; \
	done
