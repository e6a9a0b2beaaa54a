# Each target is a line that a person could type.
.PHONY: run test review lint clippy clippy-gateway docs deny

run:            ## the main job: database, stubs, gateway, all cases, report
	cargo run --release -- run

test:           ## all tests
	cargo test --workspace

review:         ## look at pending snapshot changes (needs cargo-insta: cargo install cargo-insta)
	cargo insta review

lint: clippy clippy-gateway docs deny	## all of the four

clippy:         ## clippy with denied warnings
	cargo clippy --workspace --all-targets --all-features -- -D warnings

clippy-gateway: ## the gateway alone
	cargo clippy --no-default-features -- -D warnings

docs:           ## rustdoc with denied warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

deny:           ## licences, sources and banned crates of the dependencies; installs cargo-deny where it is missing
	(command -v cargo-deny || cargo install cargo-deny --locked --quiet) && cargo deny --all-features check bans licenses sources
