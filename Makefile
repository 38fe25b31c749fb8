# Everything a developer types. Each target does what it needs first: on a fresh Debian machine with
# Rust, `make run` and `make test` are enough. CARGO_TARGET_DIR and ROOST_STATE_DIR are honoured.

CARGO ?= cargo

# The steps of a target depend on each other, and cargo uses all the cores by itself.
.NOTPARALLEL:
.PHONY: run stop test bench lint fuzz setup build guests

# A VM named hello, booted and left running.
run: setup build guests
	CARGO='$(CARGO)' scripts/run.sh

# Ends what `make run` started, and only that.
stop:
	CARGO='$(CARGO)' scripts/stop.sh

# The tests find the programs beside themselves, so they are built first.
test: setup build guests
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    $(CARGO) nextest run --locked --workspace; \
	else \
	    $(CARGO) test --locked --workspace --lib --bins --tests; \
	fi
	$(CARGO) test --locked --workspace --doc

# Release builds of what is measured and of what measures; run as it is, as `cargo run` would choose other
# features for one package alone and build again. ARGS='--help' says what can be chosen.
bench: setup guests
	$(CARGO) build --locked --release --bins -p roost-daemon -p roost-console-keeper -p roost-backend-sim -p roost-bench
	"$${CARGO_TARGET_DIR:-target}/release/bench" $(ARGS)

lint:
	scripts/setup.sh --lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) deny --locked check bans licenses sources
	if $(CARGO) deny fetch db >/dev/null 2>&1; then \
	    $(CARGO) deny --locked check advisories; \
	else \
	    echo 'lint: the advisory database cannot be fetched from here, so advisories are NOT checked' >&2; \
	fi

# Every fuzz target in turn; FUZZ_SECONDS is for each.
fuzz:
	scripts/setup.sh --fuzz
	CARGO='$(CARGO)' scripts/fuzz.sh

setup:
	scripts/setup.sh

build:
	$(CARGO) build --locked --workspace --bins

guests:
	$(CARGO) xtask guest-image
	$(CARGO) xtask micro-guest
