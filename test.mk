# The tests, in tiers (docs/TESTING.md). Each tier prints what its steps took.
#
#   check       what one runs while working
#   test        what the README says, and what a change must pass
#   test-rest   what takes longer; test-all is both
#
# No step of test is one of test-rest. check runs in short what test runs in full.

.PHONY: check test test-all test-rest
.PHONY: test-short test-go test-contents test-packages test-packages-kvm test-long test-chaos race fuzz
.PHONY: test-kvm test-kvm-others test-kvm-all test-kvm-kills test-kvm-watch test-kvm-debug

check: check-deps
	@$(MAKE) --no-print-directory build guest
	@testdata/steps.sh check "lint" "test-short"

test: test-deps
	@$(MAKE) --no-print-directory build guest
	@testdata/steps.sh test "test-go" "test-kvm test-contents"

test-all: test
	@$(MAKE) --no-print-directory test-rest

# BUDGET is how many seconds it may take. What would not fit is left out, by the seconds
# that stand behind the steps' names, and the table says so.
BUDGET ?=
test-rest: test-deps
	@$(MAKE) --no-print-directory build guest
	@testdata/steps.sh $(BUDGET:%=-b %) test-rest \
	  "lint:300 race:400 test-long:300 test-chaos:150 fuzz:600" \
	  "test-packages:500 test-kvm-others:3000 test-packages-kvm:2700"

# What needs no running guest and takes seconds. The seeds of the fuzz targets are part of it.
test-short:
	testdata/with-libvirt.sh $(GO) test -short -timeout 10m $$($(GO) list ./... | grep -v '/internal/e2e')

# The lab beside it has a processor of its own, and needs it (docs/MODULE.md).
test-go:
	nice -n 15 testdata/with-libvirt.sh $(GO) test -timeout 30m $$($(GO) list ./... | grep -v '/internal/e2e/lab$$')

# The packages whose goroutines share something.
RACE := cache kill notify respond scan source/... watch worker/...
race:
	testdata/with-libvirt.sh $(GO) test -race -short -timeout 30m $(RACE:%=./internal/%)

# Every fuzz target of the tree, FUZZTIME each.
FUZZTIME ?= 30s
fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "fuzz $$pkg $$f"; \
	    $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	  done; \
	done

# Tests of live guests at their full length, which test-go has short.
LONG := TestManyKills|TestHookCost|TestLiveStorm|TestWhatGoesAwayInMidScanIsNamed
test-long: build guest
	VMAV_TEST_LONG=1 testdata/with-libvirt.sh $(GO) test -count=1 -timeout 30m ./internal/ntguest ./internal/e2e/live -run '^($(LONG))$$'

# The service, while what it stands on is killed at random.
test-chaos: build guest
	VMAV_CHAOS=$(or $(CHAOS),1m) testdata/with-libvirt.sh $(GO) test -count=1 -timeout 60m ./internal/e2e/live -run '^TestWatchSurvivesChaos$$'

# What is in the packages; then these in a Debian of their own, in a container, and in the
# lab with the module.
test-contents: build
	@packaging/test.sh contents
test-packages: build guest
	@packaging/test.sh
test-packages-kvm: build guest
	@packaging/test.sh lab

# The module, and vmav with it, on stock kernels under nested KVM (docs/MODULE.md).
test-kvm: lab-test
test-kvm-others:
	@VMAV_TEST_LONG=1 $(MAKE) --no-print-directory lab-test LAB_KERNELS="$(filter-out $(LAB_KERNELS),$(LAB_KERNELS_ALL))"
	@$(MAKE) --no-print-directory resize-test LAB_KERNELS="$(LAB_KERNELS_ALL)"
test-kvm-all: test-kvm test-kvm-others

# Many kills in the lab, with the times from request to death.
KILLS ?= 1000
test-kvm-kills: build guest
	@VMAV_LAB_KILLS=$(KILLS) $(MAKE) --no-print-directory lab-go-test LAB_RUN='^TestKills$$$$' LAB_KERNELS=6.1 LAB_LIMIT=36000

# The service in the lab: so many programs that start and must die, with the times, and chaos
# for so long.
STARTS ?= 200
test-kvm-watch: build guest
	@VMAV_LAB_STARTS=$(STARTS) VMAV_CHAOS=$(or $(CHAOS),15m) $(MAKE) --no-print-directory lab-go-test LAB_RUN='^TestWatch' LAB_KERNELS=6.1 LAB_LIMIT=36000

# On a kernel with lockdep, KASAN and kmemleak, which it builds first (a quarter of an hour).
test-kvm-debug:
	@$(MAKE) --no-print-directory module-test LAB_KERNELS=6.1-debug
