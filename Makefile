# vmav: agentless antivirus for Windows guests on KVM.
#
#   make demo    install what is missing, build, and run the main job on a real VM
#   make test    everything that is tested
#
# `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Debian's versioned Go, which make deps installs where there is none new enough, is not
# on PATH by itself.
ifeq ($(shell go env GOVERSION 2>/dev/null | grep -E '^go1\.(2[3-9]|[3-9][0-9])'),)
export PATH := /usr/lib/go-1.23/bin:$(PATH)
endif
GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
FUZZTIME ?= 30s

.PHONY: help deps demo-deps build test demo bench fuzz install clean packages test-packages test-packages-kvm
.DEFAULT_GOAL := build

help:
	@echo "targets: deps build packages test demo bench lint fmt vuln fuzz install clean test-packages test-packages-kvm test-kvm test-kvm-all test-kvm-kills test-kvm-watch test-kvm-debug bench-kvm module-matrix"

# What building, the demo and running vmav take; deps adds what the tests read.
demo-deps:
	@packaging/deps.sh
	@testdata/linux.sh
	@$(MAKE) --no-print-directory lab-deps

# A node of one's own brings its npm; Debian's is a package of its own.
deps: demo-deps
	@command -v npm >/dev/null || VMAV_EXTRA_PACKAGES=npm packaging/deps.sh
	@testdata/pecorpus/fetch.sh
	@packaging/root.sh fetch

build: guest-assets
	@mkdir -p bin
	$(GO) build -trimpath -buildmode=pie -ldflags '$(LDFLAGS)' -o bin/vmav ./cmd/vmav
	$(GO) build -trimpath -o bin/ntguest ./internal/ntguest/cmd/ntguest

include toolchain.mk
include lint.mk
include testdata/ntguest/guest.mk
include kernel/kvm-memhook/module.mk
include kernel/kvm-memhook/lab/lab.mk

# The module, and vmav with it, on stock kernels under nested KVM (docs/MODULE.md).
.PHONY: test-kvm test-kvm-all test-kvm-kills test-kvm-watch test-kvm-debug
test-kvm: lab-test
test-kvm-all:
	@$(MAKE) --no-print-directory lab-test LAB_KERNELS="$(LAB_KERNELS_ALL)" LAB_STEPS="module-test resize-test lab-go-test"

# Many kills in the lab, with the times from request to death.
KILLS ?= 1000
test-kvm-kills: build
	@VMAV_LAB_KILLS=$(KILLS) $(MAKE) --no-print-directory lab-go-test LAB_RUN='^TestLabKills$$$$' LAB_KERNELS=6.1 LAB_LIMIT=36000

# The service in the lab: so many programs that start and must die, with the times, and chaos
# for so long.
STARTS ?= 200
CHAOS  ?= 15m
test-kvm-watch: build
	@VMAV_LAB_STARTS=$(STARTS) VMAV_CHAOS=$(CHAOS) $(MAKE) --no-print-directory lab-go-test LAB_RUN='^TestLabWatch' LAB_KERNELS=6.1 LAB_LIMIT=36000

# On a kernel with lockdep, KASAN and kmemleak, which it builds first (a quarter of an hour).
test-kvm-debug:
	@$(MAKE) --no-print-directory module-test LAB_KERNELS=6.1-debug

# The tests boot guests as libvirt domains and read them; then the packages, in a Debian of
# their own, and the module.
test: build lint
	testdata/with-libvirt.sh $(GO) test -timeout 30m ./...
	@$(MAKE) --no-print-directory test-packages
	@$(MAKE) --no-print-directory test-kvm

demo: demo-deps
	@$(MAKE) --no-print-directory build
	@testdata/with-libvirt.sh testdata/demo/run.sh

bench: build
	@GO=$(GO) testdata/with-libvirt.sh testdata/bench/run.sh

# Every fuzz target of the tree, FUZZTIME each.
fuzz: build
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "fuzz $$pkg $$f"; \
	    $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	  done; \
	done

install: build
	install -D -m 755 bin/vmav $(DESTDIR)$(PREFIX)/bin/vmav
	install -D -m 644 packaging/completion/vmav.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmav

# vmav and vmav-dkms, into build/packages (docs/PACKAGING.md).
packages: build
	@packaging/build.sh

# Installed, upgraded and purged in a Debian of its own: in a container, and in the lab with
# the module (some 20 minutes).
test-packages: build
	@packaging/test.sh
test-packages-kvm: build
	@packaging/test.sh lab

clean:
	rm -rf bin build
