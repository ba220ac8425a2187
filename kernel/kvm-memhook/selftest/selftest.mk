# The selftest program, static so that it runs on any of the lab's kernels.
KMH_SELFTEST := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))

KMH_CFLAGS := -std=gnu11 -O1 -g -Wall -Wextra -Werror -static -pthread

build/kvm-memhook/kmh-selftest: $(wildcard $(KMH_SELFTEST)/*.c $(KMH_SELFTEST)/*.h $(KMH_SELFTEST)/../uapi/*.h)
	@mkdir -p $(@D)
	gcc $(KMH_CFLAGS) -o $@ $(filter-out %/bench.c,$(filter %.c,$^))

# What the module costs a guest (docs/PERFORMANCE.md).
build/kvm-memhook/kmh-bench: $(KMH_SELFTEST)/bench.c $(KMH_SELFTEST)/guest.c $(KMH_SELFTEST)/events.c $(KMH_SELFTEST)/vmm.c $(wildcard $(KMH_SELFTEST)/*.h $(KMH_SELFTEST)/../uapi/*.h)
	@mkdir -p $(@D)
	gcc $(KMH_CFLAGS) -o $@ $(filter %.c,$^)
