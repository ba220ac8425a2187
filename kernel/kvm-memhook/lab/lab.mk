# The nested lab: stock Debian kernels under QEMU's emulated SVM, with the module
# and guests inside (docs/MODULE.md). Included by the top-level Makefile.

KVM_MEMHOOK_LAB := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))
# The series every test run takes; test-kvm-all takes all of them.
LAB_KERNELS     ?= 6.1 6.12
LAB_KERNELS_ALL ?= 5.10 6.1 6.12 7.2
GO              ?= go

include $(KVM_MEMHOOK_LAB)/../selftest/selftest.mk

.PHONY: lab-hello lab-deps module-test resize-test lab-go-test lab-test lab-step build/kvm-memhook/lab.test

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
bench-kvm: build build/kvm-memhook/kmh-bench
	@$(KVM_MEMHOOK_LAB)/run-module.sh -o build/kvm-memhook/lab-bench 6.1 build/kvm-memhook/kmh-bench build/kvm-memhook/6.1/kvm_memhook.ko
	@$(MAKE) --no-print-directory lab-go-test LAB_KERNELS=6.1 LAB_RUN=TestReadCost

# All that is tested in the lab. A lab takes one processor, so that two kernels run
# side by side; what a step says comes when it is done.
LAB_JOBS ?= 2
lab-test: build build/kvm-memhook/lab.test build/kvm-memhook/kmh-selftest build/kvm-memhook/kmh-resize
	@$(MAKE) --no-print-directory --output-sync=recurse -j$(LAB_JOBS) $(LAB_KERNELS:%=lab-test-%)

# What make test takes; test-kvm-all adds resize-test.
LAB_STEPS ?= module-test lab-go-test
lab-test-%:
	@for s in $(LAB_STEPS); do $(MAKE) --no-print-directory lab-step STEP=$$s LAB_KERNELS=$* || exit; done

# The emulation loses an interrupt now and then, and a guest stands still: a step that
# fails without a complaint of the kernel is made once more, and says so.
lab-step:
	@echo "== Linux $(LAB_KERNELS): $(STEP)"
	@LAB_AGAIN=1 $(MAKE) --no-print-directory $(STEP)
