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

.PHONY: help run test setup fmt lint unit device doc build bench clean-demo cuda-toolchain cuda gpu-check kernels-check

help: ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

run: setup build ## the main job: documents in, cited answers out, server left up
	@models/fetch_demo.sh
	@tests/demo/run.sh "$(TARN_TARGET)/release/tarn"

test: setup fmt lint unit device doc ## everything that must pass before a change lands

setup:
	@.ci/setup

build: setup ## the release binary
	$(CARGO) build --locked --release

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --locked --workspace --all-targets --features emulator -- -D warnings

# Seeded faults take a compiler each: `make kernels-check` has them.
unit:
	$(CARGO) nextest run --locked --workspace --features emulator -E 'not test(every_seeded_fault)'
	$(CARGO) test --locked --workspace --features emulator --doc --quiet

# Where the CUDA compiler is: every kernel for GPUs, and the calls of a driver that has the emulator for a GPU.
device:
	@kernels/cuda/toolchain.sh compile
ifneq ($(wildcard $(or $(TARN_CUDA),.cuda/nvidia/cu13)/bin/nvcc),)
	$(CARGO) clippy --locked -p tarn-kernels --all-targets --features cuda,emulator -- -D warnings
	$(CARGO) nextest run --locked -p tarn-kernels --features cuda,emulator cuda::
endif

doc:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet

bench: setup ## times of single ops on this CPU
	$(CARGO) bench --locked -p tarn-kernels

cuda-toolchain: ## the CUDA compiler, into .cuda
	@kernels/cuda/toolchain.sh install

cuda: setup cuda-toolchain ## the release binary with GPU support; it starts without a GPU, too
	$(CARGO) build --locked --release --features cuda

gpu-check: cuda ## on a machine with a GPU: every kernel against its reference, and the table of times
	"$(TARN_TARGET)/release/tarn" gpu-check --json gpu-check.json

kernels-check: device ## the device kernels without a GPU: compiled, emulated, watched, with seeded faults
	$(CARGO) clippy --locked -p tarn-kernels --all-targets --features emulator -- -D warnings
	$(CARGO) test --locked -p tarn-kernels --features emulator --lib emulated

clean-demo: ## remove the demo lake
	rm -rf .tarn
