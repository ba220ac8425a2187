# The nested lab: stock Debian kernels under QEMU's emulated SVM, with the module
# and a guest of their own inside. Included by the top-level Makefile; also runs
# by itself: make -f kernel/kvm-memhook/lab/lab.mk lab-hello

KVM_MEMHOOK_LAB := $(dir $(lastword $(MAKEFILE_LIST)))
# The series every test run takes; test-kvm-all takes all of them.
LAB_KERNELS     ?= 6.1 6.12
LAB_KERNELS_ALL ?= 5.10 6.1 6.12 7.2

.PHONY: lab-hello

# Does KVM work in the lab at all?
lab-hello:
	@for k in $(LAB_KERNELS); do \
	  $(KVM_MEMHOOK_LAB)run.sh $$k $(abspath $(KVM_MEMHOOK_LAB))/nested.sh; \
	done

include $(KVM_MEMHOOK_LAB)../selftest/selftest.mk

.PHONY: module-test module-test-all

# The module's selftests on a stock kernel; TESTS="memory/ mapping/" to choose.
module-test: build/kvm-memhook/kmh-selftest
	@for k in $(LAB_KERNELS); do \
	  $(KVM_MEMHOOK_LAB)build.sh $$k build/kvm-memhook/$$k && \
	  $(KVM_MEMHOOK_LAB)run.sh -o build/kvm-memhook/lab-$$k $$k "$(KVM_MEMHOOK_LAB)selftest.sh build/kvm-memhook/$$k/kvm_memhook.ko build/kvm-memhook/kmh-selftest $(TESTS)" || exit; \
	done

module-test-all:
	@$(MAKE) --no-print-directory -f $(KVM_MEMHOOK_LAB)lab.mk module-test LAB_KERNELS="$(LAB_KERNELS_ALL)"
