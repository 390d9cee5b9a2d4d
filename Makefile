# The recipes are short; the logic is in fixtures/ and in the tests' runner.

.DEFAULT_GOAL := help
SHELL := /bin/bash

host := $(shell uname -m)
# ARCH=name in either form: what test, lab, rootfs and kernel are for.
arch := $(subst arm64,aarch64,$(subst amd64,x86_64,$(or $(ARCH),$(host))))
target := $(host)-unknown-linux-musl
foreign := $(filter-out $(host),$(arch))
targets := --target $(target) $(foreign:%=--target %-unknown-linux-musl)
# Debian's name, for what is made in the cache.
debian_arch := $(subst aarch64,arm64,$(subst x86_64,amd64,$(arch)))
out := $(or $(CARGO_TARGET_DIR),target)/$(target)/release
cache := $(or $(MACHINEN_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/machinen)
assets := $(cache)/lab/$(debian_arch)

# A build of minutes shows its progress to a person.
quiet := $(shell test -t 2 || echo --quiet)

# /init is no_std: with features that other packages turn on in shared dependencies (std) it does not link, so it is
# always built by itself.
no_std := guest-init

# Seconds for each fuzz target.
FUZZ_SECONDS ?= 60

.PHONY: help demo test shell soak fuzz check lint bench kernel rootfs lab suites deps build clean

help: ## show this
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: deps lab rootfs build ## boot Debian and get its exit code, from a fresh machine on
	@fixtures/demo $(out) $(assets)

# What tests boot beside the lab's own kernel and busybox is for x86_64 so far; others' tests that want it fail.
test: deps lab $(if $(filter x86_64,$(arch)),rootfs kernel suites) build ## all tests, Linux guests included (in the lab where the host cannot run them); ARCH=name for another
	@cargo test --quiet --doc --package machinen --target $(target)
	@$(out)/machinen-test $(foreign:%=--arch %) $(TEST_ARGS)

shell: deps lab rootfs kernel build ## a shell in the lab, with the tools, a kernel and an image
	@fixtures/shell $(out) $(assets)

soak: deps lab rootfs kernel suites build ## what takes long: gigabytes through vsock and network, longer fuzzing
	@MACHINEN_SOAK=1 $(out)/machinen-test --limit 3600 --total 14400 --filter linux_ $(TEST_ARGS)
	@fixtures/fuzz 300

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
	@fixtures/kernel/build $(arch)

rootfs: deps ## the root file system for test guests, cached; ARCH as above
	@fixtures/lab/rootfs $(debian_arch)

lab: deps ## kernel and initramfs of the lab, cached; ARCH as above
	@fixtures/lab/prepare $(debian_arch)

suites: lab ## file system test suites of others for test guests, cached; ARCH as above
	@fixtures/suites/get $(debian_arch)

deps: ## install missing Debian packages and Rust targets
	@fixtures/lab/deps

build: deps ## release build of all programs, static
	@cargo build $(quiet) --release --workspace --exclude $(no_std) --bins $(targets)
	@cargo build $(quiet) --release -p $(no_std) $(targets)

clean: ## remove the build; the cache stays
	@cargo clean --quiet
