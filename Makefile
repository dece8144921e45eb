# Two commands do all the set-up:
#   make run    builds, gets small real weights, ingests the demo catalogue, serves it and asks it a question
#   make test   formats, lints, tests and documents; the network is used for dependencies only
#
# TARN_TARGET  where cargo builds (default: outside the checkout, so that fresh clones share it)

SHELL := /bin/bash
TARN_TARGET ?= $(or $(CARGO_TARGET_DIR),$(HOME)/.cache/tarn/target)
export TARN_MODELS_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tarn/models
export CARGO_TARGET_DIR := $(TARN_TARGET)
CARGO ?= cargo

.PHONY: help run test setup fmt lint unit kernels doc build bench clean-demo cuda-toolchain kernels-check

help: ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

run: setup build ## the main job: documents in, cited answers out, server left up
	@models/fetch_demo.sh
	@tests/demo/run.sh "$(TARN_TARGET)/release/tarn"

test: setup fmt lint unit kernels doc ## everything that must pass before a change lands

setup:
	@.ci/setup

build: setup ## the release binary
	$(CARGO) build --locked --release

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

unit:
	$(CARGO) nextest run --locked --workspace
	$(CARGO) test --locked --workspace --doc --quiet

kernels:
	$(CARGO) test --locked -p tarn-kernels --features emulator --lib emulated::tests

doc:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet

bench: setup ## times of single ops on this CPU
	$(CARGO) bench --locked -p tarn-kernels

cuda-toolchain: ## the CUDA compiler, into .cuda
	@kernels/cuda/toolchain.sh install

kernels-check: ## the device kernels without a GPU: compiled, emulated, watched, with seeded faults
	@kernels/cuda/toolchain.sh compile
	$(CARGO) clippy --locked -p tarn-kernels --all-targets --features emulator -- -D warnings
	$(CARGO) test --locked -p tarn-kernels --features emulator --lib emulated

clean-demo: ## remove the demo lake
	rm -rf .tarn
