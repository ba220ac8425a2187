# vmav: agentless antivirus for Windows guests on KVM.
#
#   make demo     install what is missing, build, and run the main job on a real VM
#   make test     install what is missing, and test it
#   make check    what one runs while working
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

.PHONY: help deps demo-deps check-deps test-deps build guest demo bench install clean packages
.DEFAULT_GOAL := build

define HELP
make                 builds bin/vmav
make demo            installs what is missing, builds, and runs the main job on a real VM
make check           lint, unit tests, the seeds of the fuzz targets: some 4 minutes
make test            unit tests, live guests, the packages' contents, the module on one kernel: some 25 minutes
make test-all        make test, and all that takes longer (make test-rest): some two hours
make race            the concurrent packages under the race detector
make fuzz            every fuzz target, FUZZTIME=30s each
make test-long       tests of live guests at their full length
make test-chaos      the service while everything around it is killed, CHAOS=1m
make test-packages   the packages in a container; test-packages-kvm: in the nested lab, with the module
make test-kvm        the module in the nested lab, LAB_KERNELS="6.1"; test-kvm-all: on all kernels
make bench           the figures of docs/PERFORMANCE.md; bench-kvm: those of the module
make packages        build/packages/*.deb
also: build guest install clean deps demo-deps check-deps test-deps lint fmt vuln test-kvm-kills test-kvm-watch test-kvm-debug module module-matrix
endef
help:
	$(info $(HELP))
	@:

# Each of these brings what its command takes. With all of it there they change nothing and
# need neither root nor the network.
demo-deps:
	@packaging/deps.sh build demo
	@$(MAKE) --no-print-directory lab-deps LAB_KERNELS=6.1
check-deps:
	@packaging/deps.sh build demo test
	@testdata/pecorpus/fetch.sh
test-deps: check-deps
	@testdata/linux.sh
	@packaging/root.sh fetch
	@$(MAKE) --no-print-directory lab-deps LAB_KERNELS=6.1
deps: test-deps
	@$(MAKE) --no-print-directory lab-deps LAB_KERNELS="$(LAB_KERNELS_ALL)"

build:
	@mkdir -p bin
	$(GO) build -trimpath -buildmode=pie -ldflags '$(LDFLAGS)' -o bin/vmav ./cmd/vmav

# The NT test guest, which demo and tests boot.
guest: guest-assets
	@mkdir -p bin
	$(GO) build -trimpath -o bin/ntguest ./internal/ntguest/cmd/ntguest

include toolchain.mk
include lint.mk
include testdata/ntguest/guest.mk
include kernel/kvm-memhook/module.mk
include kernel/kvm-memhook/lab/lab.mk
include test.mk

demo: demo-deps
	@$(MAKE) --no-print-directory build guest
	@testdata/with-libvirt.sh testdata/demo/run.sh

bench: build guest
	@GO=$(GO) testdata/with-libvirt.sh testdata/bench/run.sh


install: build
	install -D -m 755 bin/vmav $(DESTDIR)$(PREFIX)/bin/vmav
	install -D -m 644 packaging/completion/vmav.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmav

# vmav and vmav-dkms, into build/packages (docs/PACKAGING.md).
packages: build
	@packaging/build.sh

clean:
	rm -rf bin build
