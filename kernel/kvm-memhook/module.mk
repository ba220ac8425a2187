# Builds kvm_memhook.ko. Included by the top-level Makefile; also runs by itself:
#   make -f kernel/kvm-memhook/module.mk module-lab KERNELS=6.1

KVM_MEMHOOK := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))
KERNELS     ?= 5.10 6.1 6.12 7.2

KVM_MEMHOOK_SOURCES := $(shell find $(KVM_MEMHOOK) -name lab -prune -o -name selftest -prune -o \
	-type f \( -name '*.[chS]' -o -name Kbuild -o -name '*.sh' \) -print)

.PHONY: module module-lab module-matrix

# For the running kernel, from its headers package.
module:
	$(MAKE) -C /lib/modules/$(shell uname -r)/build M=$(KVM_MEMHOOK) modules

# For the lab's kernels, each with the compiler it was built with.
module-lab: $(KERNELS:%=build/kvm-memhook/%/kvm_memhook.ko)

build/kvm-memhook/%/kvm_memhook.ko: $(KVM_MEMHOOK_SOURCES)
	@$(KVM_MEMHOOK)/lab/build.sh $* $(@D)

# One line for each kernel: release, compiler, warnings. Fails on any warning,
# from the compiler or from sparse.
module-matrix:
	@for k in $(KERNELS); do $(KVM_MEMHOOK)/lab/build.sh -s $$k build/kvm-memhook/$$k || exit; done
