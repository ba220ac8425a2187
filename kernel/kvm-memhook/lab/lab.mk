# The nested lab: stock Debian kernels under QEMU's emulated SVM, with the module
# and guests inside (docs/MODULE.md). Included by the top-level Makefile.

KVM_MEMHOOK_LAB := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))
# The series that make test takes, and all of them, which make test-all takes.
LAB_KERNELS     ?= 6.1
LAB_KERNELS_ALL ?= 5.10 6.1 6.12 7.2
GO              ?= go

include $(KVM_MEMHOOK_LAB)/../selftest/selftest.mk

.PHONY: lab-hello lab-deps module-test resize-test lab-go-test lab-test build/kvm-memhook/lab.test

# Does KVM work in the lab at all?
lab-hello:
	@for k in $(LAB_KERNELS); do $(KVM_MEMHOOK_LAB)/run.sh $$k $(KVM_MEMHOOK_LAB)/nested.sh || exit; done

lab-deps:
	@for k in $(LAB_KERNELS); do $(KVM_MEMHOOK_LAB)/kernels.sh fetch $$k || exit; done

# The module's selftests; TESTS="memory/ mapping/" to choose.
module-test: build/kvm-memhook/kmh-selftest
	@for k in $(LAB_KERNELS); do \
	  $(KVM_MEMHOOK_LAB)/run-module.sh -o build/kvm-memhook/lab-$$k-selftest $$k build/kvm-memhook/kmh-selftest $(TESTS) || exit; \
	done

# Memory that QEMU takes from a Linux guest and gives back, under a reader's eyes.
resize-test: build/kvm-memhook/kmh-resize
	@for k in $(LAB_KERNELS); do \
	  LAB_SMP=1 $(KVM_MEMHOOK_LAB)/run-module.sh -t 1800 -o build/kvm-memhook/lab-$$k-resize $$k $(KVM_MEMHOOK_LAB)/resize.sh build/kvm-memhook/kmh-resize || exit; \
	done

build/kvm-memhook/kmh-resize: $(wildcard $(KMH_SELFTEST)/qemu/*.[ch]) $(KMH_SELFTEST)/vmm.c $(KMH_SELFTEST)/vmm.h $(KMH_SELFTEST)/harness.h $(wildcard $(KMH_SELFTEST)/../uapi/*.h)
	@mkdir -p $(@D)
	gcc -std=gnu11 -O1 -g -Wall -Wextra -Werror -static -pthread -o $@ $(filter %.c,$^)

# The Go tests of internal/e2e/lab: bin/vmav on KVM guests. LAB_RUN is a pattern of go test, and
# LAB_LIMIT how many seconds they may take.
LAB_RUN   ?= .
LAB_LIMIT ?= 3600
lab-go-test: build/kvm-memhook/lab.test
	@for k in $(LAB_KERNELS); do \
	  (cd internal/e2e/lab && $(KVM_MEMHOOK_LAB)/run-module.sh -l -t $(LAB_LIMIT) -o ../../../build/kvm-memhook/lab-$$k-go $$k \
	    ../../../build/kvm-memhook/lab.test -test.v -test.timeout $(LAB_LIMIT)s -test.run '$(LAB_RUN)') || exit; \
	done

# Replaced only when it is another one: a lab may be running it.
build/kvm-memhook/lab.test:
	@mkdir -p $(@D)
	@$(GO) test -c -trimpath -o $@.$$$$ ./internal/e2e/lab && \
	  if cmp -s $@.$$$$ $@; then rm $@.$$$$; else mv $@.$$$$ $@; fi

# What the module costs a guest, and what reading through it costs (docs/PERFORMANCE.md).
.PHONY: bench-kvm
bench-kvm: build guest build/kvm-memhook/kmh-bench
	@$(KVM_MEMHOOK_LAB)/run-module.sh -o build/kvm-memhook/lab-bench 6.1 build/kvm-memhook/kmh-bench build/kvm-memhook/6.1/kvm_memhook.ko
	@VMAV_TEST_LONG=1 $(MAKE) --no-print-directory lab-go-test LAB_KERNELS=6.1 LAB_RUN=TestReadCost

# All that is tested in the lab, in one boot for each kernel (tests.sh). A lab takes one
# processor, so that LAB_JOBS of them can run side by side; what one says comes when it is
# done. The emulation was seen to hang: a lab that comes to no result is booted once more,
# and says so.
LAB_JOBS ?= 1
lab-test: build guest build/kvm-memhook/lab.test build/kvm-memhook/kmh-selftest
	@$(MAKE) --no-print-directory $(if $(filter 1,$(LAB_JOBS)),,--output-sync=recurse) -j$(LAB_JOBS) $(LAB_KERNELS:%=lab-test-%)

lab-test-%:
	@echo "== Linux $*"
	@LAB_AGAIN=1 $(KVM_MEMHOOK_LAB)/run-module.sh -t $(LAB_LIMIT) -s 600 -o build/kvm-memhook/lab-$* $* \
	  $(KVM_MEMHOOK_LAB)/tests.sh $(abspath build/kvm-memhook/kmh-selftest) $(abspath build/kvm-memhook/lab.test) $(LAB_LIMIT)
