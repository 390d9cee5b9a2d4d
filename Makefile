# The recipes are short; the logic is in fixtures/ and in the tests' runner.

.DEFAULT_GOAL := help
SHELL := /bin/bash

host := $(shell uname -m)
# ARCH=name in either form: what everything is for. Without it, this host, and what tests or is handed out is for both.
arch := $(subst arm64,aarch64,$(subst amd64,x86_64,$(or $(ARCH),$(host))))
$(if $(filter-out x86_64 aarch64,$(arch)),$(error ARCH=$(ARCH): it is x86_64 (amd64) or aarch64 (arm64)))
both := $(if $(ARCH),$(arch),$(host) $(filter-out $(host),x86_64 aarch64))
archs = $(arch)
test soak dist: archs = $(both)
foreign = $(filter-out $(host),$(archs))
target := $(host)-unknown-linux-musl
# Debian's names, for what is made in the cache.
debian_archs = $(subst aarch64,arm64,$(subst x86_64,amd64,$(archs)))
targets := $(or $(CARGO_TARGET_DIR),target)
out := $(targets)/$(target)/release
cache := $(or $(MACHINEN_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/machinen)

# A build of minutes shows its progress to a person.
quiet := $(shell test -t 2 || echo --quiet)

# /init is no_std: with features that other packages turn on in shared dependencies (std) it does not link, so it is
# always built by itself.
no_std := guest-init

# Seconds for each fuzz target.
FUZZ_SECONDS ?= 60

.PHONY: help demo test shell soak dist fuzz check lint bench kernel rootfs lab suites deps build clean

help: ## show this
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: deps lab rootfs build ## boot Debian and get its exit code, from a fresh machine on; ARCH=name for another architecture
	@fixtures/demo $(arch) $(targets) $(cache)

test: deps lab rootfs kernel suites build ## all tests, Linux guests included (in the lab where the host cannot run them), and another architecture's; ARCH=name for one
	@cargo test --quiet --doc --package machinen --target $(target)
	@$(out)/machinen-test $(archs:%=--arch %) $(TEST_ARGS)

shell: deps lab rootfs kernel build ## a shell in the lab, with the tools, a kernel and an image; ARCH as above
	@fixtures/shell $(arch) $(targets) $(cache)

soak: deps lab rootfs kernel suites build ## what takes long: gigabytes through vsock and network, all of both architectures, longer fuzzing
	@MACHINEN_SOAK=1 $(out)/machinen-test --limit 3600 --total 14400 --filter linux_ $(archs:%=--arch %) $(TEST_ARGS)
	@fixtures/fuzz 300

dist: deps build ## archives of the programs for both architectures, with checksums, in target/dist; ARCH=name for one
	@fixtures/dist $(targets) $(archs)

fuzz: ## every fuzz target for FUZZ_SECONDS (60), from the corpus on
	@fixtures/fuzz $(FUZZ_SECONDS)

check: lint ## format, lints, unit tests, examples in the documentation
	@cargo test --quiet --workspace --lib --target $(target)
	@cargo test --quiet --doc --package machinen --target $(target)

lint: deps ## format and lints for both architectures
	@cargo fmt --all --check
	@fixtures/lint
	@cargo clippy --quiet --workspace --exclude $(no_std) --all-targets --target x86_64-unknown-linux-musl -- -D warnings
	@cargo clippy --quiet --workspace --exclude $(no_std) --all-targets --target aarch64-unknown-linux-musl -- -D warnings
	@cargo clippy --quiet -p $(no_std) --target x86_64-unknown-linux-musl --target aarch64-unknown-linux-musl -- -D warnings

bench: deps lab rootfs kernel build ## every figure beside what it is compared with, also in target/bench/report.json
	@cargo bench --quiet -p machinen-benches --bench '*' --target $(target)

kernel: deps ## the tuned guest kernel, cached; ARCH=name for another architecture
	@for arch in $(archs); do fixtures/kernel/build $$arch || exit; done

rootfs: deps ## the root file system for test guests, cached; ARCH as above
	@for arch in $(debian_archs); do fixtures/lab/rootfs $$arch || exit; done

lab: deps ## kernel and initramfs of the lab, cached; ARCH as above
	@for arch in $(debian_archs); do fixtures/lab/prepare $$arch || exit; done

suites: lab ## file system test suites of others for test guests, cached; ARCH as above
	@for arch in $(debian_archs); do fixtures/suites/get $$arch || exit; done

deps: ## install missing Debian packages and Rust targets
	@fixtures/lab/deps

build: deps ## release build of all programs, static
	@cargo build $(quiet) --release --workspace --exclude $(no_std) --bins --target $(target)
	@cargo build $(quiet) --release -p $(no_std) --target $(target)
	@for arch in $(foreign); do \
	    cargo build $(quiet) --release --workspace --exclude $(no_std) --bins --target $$arch-unknown-linux-musl && \
	    cargo build $(quiet) --release -p $(no_std) --target $$arch-unknown-linux-musl || exit; \
	done

clean: ## remove the build; the cache stays
	@cargo clean --quiet
