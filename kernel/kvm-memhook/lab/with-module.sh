#!/usr/bin/env bash
# Runs inside the lab: loads stock kvm_amd and the module, runs a command, and unloads
# both again. That fails if anything of a VM or of a client has leaked: KVM counts its
# VMs, and the kernel complains of a slab cache that is not empty when it goes.
#
#   with-module.sh MODULE COMMAND [ARG...]
#
# The command sees VMAV_LAB=1: this is the lab, KVM and the module must work.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 99; }
module=$1
shift
export VMAV_LAB=1
KMH_SAMPLE=$(dirname "$module")/kmh_sample.ko # for the selftest of hooks from within the kernel
export KMH_SAMPLE

modprobe kvm_amd
[ -c /dev/kvm ] || { echo "with-module.sh: no /dev/kvm" >&2; exit 1; }
# What udev would do: libvirt's QEMU runs as another user.
chgrp kvm /dev/kvm && chmod 660 /dev/kvm
# A debug kernel's own view of leaks; what it holds against the boot is not ours.
leaks=/sys/kernel/debug/kmemleak
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null || true
[ ! -e $leaks ] || echo clear >$leaks
insmod "$module"

status=0
"$@" || status=$?

if [ -e $leaks ]; then
	# An object counts from its second scan on, and when it is some seconds old.
	for _ in 1 2 3; do sleep 6; echo scan >$leaks; done
	cat $leaks >/lab/out/kmemleak
	if grep -q kvm_memhook /lab/out/kmemleak; then
		echo "with-module.sh: kmemleak says" >&2
		grep -B 8 -A 16 -m 3 kvm_memhook /lab/out/kmemleak >&2
		exit 1
	fi
fi

# VMs and clients are gone; their ends are handled by delayed work.
for _ in $(seq 20); do
	rmmod kvm_memhook 2>/dev/null && break
	sleep 0.5
done
if grep -q ^kvm_memhook /proc/modules; then
	echo "with-module.sh: the module is still in use: $(grep ^kvm_memhook /proc/modules)" >&2
	exit 1
fi
rmmod kvm_amd kvm || { echo "with-module.sh: kvm cannot be unloaded: a VM has leaked" >&2; exit 1; }
exit $status
