# Each target is a command that a person could type. `make` or `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help run test review lint fmt clippy clippy-gateway docs deny unused openapi

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

lint: fmt clippy clippy-gateway docs deny unused ## every check that runs no test

fmt:            ## formatting
	cargo fmt --all --check

clippy:         ## clippy; every warning is an error
	cargo clippy --workspace --all-targets --all-features -- -D warnings

clippy-gateway: ## clippy on the gateway without harness and suites
	cargo clippy --no-default-features -- -D warnings

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
