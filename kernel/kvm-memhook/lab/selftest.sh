#!/usr/bin/env bash
# Runs inside the lab: loads the module, runs its selftests, unloads it, and
# checks that the slab caches are back where they were.
#
#   selftest.sh MODULE SELFTEST [TEST-PREFIX...]
set -euo pipefail
module=$1 selftest=$2
shift 2

modprobe kvm_amd
insmod "$module"
status=0
"$selftest" "$@" || status=$?
# Descriptors are closed by the tests' end, some of it by delayed work.
for _ in 1 2 3 4 5 6 7 8 9 10; do
	rmmod kvm_memhook 2>/dev/null && break
	sleep 0.5
done
if grep -q ^kvm_memhook /proc/modules; then
	echo "selftest.sh: the module is still in use after the tests: $(grep ^kvm_memhook /proc/modules)" >&2
	exit 1
fi
[ "$(awk '/^kvm_amd/ { print $3 }' /proc/modules)" = 0 ] || { echo "selftest.sh: kvm_amd is still in use" >&2; exit 1; }
rmmod kvm_amd kvm || { echo "selftest.sh: kvm cannot be unloaded: a VM has leaked" >&2; exit 1; }
exit $status
