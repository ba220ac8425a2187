# The selftest program, static so that it runs on any of the lab's kernels.
KMH_SELFTEST := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))

build/kvm-memhook/kmh-selftest: $(wildcard $(KMH_SELFTEST)/*.c $(KMH_SELFTEST)/*.h $(KMH_SELFTEST)/../uapi/*.h)
	@mkdir -p $(@D)
	gcc -std=gnu11 -O1 -g -Wall -Wextra -Werror -static -pthread -o $@ $(filter %.c,$^)
