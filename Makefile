# Each target is a line that a person could type.
.PHONY: run test review lint deny

run:            ## the main job: database, stubs, gateway, all cases, report
	cargo run --release -- run

test:           ## all tests
	cargo test --workspace

review:         ## look at pending snapshot changes (needs cargo-insta: cargo install cargo-insta)
	cargo insta review

lint:           ## clippy (whole, and the gateway alone) and rustdoc with denied warnings, licences and duplicates of dependencies
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	cargo clippy --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	command -v cargo-deny >/dev/null || cargo install cargo-deny --locked --quiet
	cargo deny --all-features check bans licenses sources
