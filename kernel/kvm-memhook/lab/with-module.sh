#!/usr/bin/env bash
# Runs inside the lab: loads stock kvm_amd and the module, runs a command with a
# libvirt, and unloads both again, which shows that nothing of a VM has leaked.
#
#   with-module.sh [-g 'NTGUEST OPTIONS'] MODULE COMMAND [ARG...]
#
#   -g   boot the NT test guest first, as a KVM domain: options of `ntguest
#        domain`, such as '--build 10.0.19041'; '' for the defaults
#
# The command runs in the current directory and sees
#
#   VMAV_LAB=1               this is the lab: KVM and the module must work
#   VMAV_LAB_DOMAIN          with -g: the domain's name, at qemu:///session
#   VMAV_LAB_CONSOLE         with -g: its console, a UNIX socket
#   VMAV_LAB_CONSOLE_LOG     with -g: what its console has said
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../../.." && pwd)

options=
if [ "${1:-}" = -g ]; then
	options="domain $2"
	shift 2
fi
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
insmod "$module"

status=0
if [ -z "$options" ]; then
	"$top/testdata/with-libvirt.sh" "$@" || status=$?
else
	dir=$(mktemp -d /tmp/vmav-lab.XXXXXX)
	chmod 777 "$dir" # libvirt's QEMU reads the kernel and makes the socket here
	export VMAV_LAB_DOMAIN=lab VMAV_LAB_CONSOLE=$dir/console VMAV_LAB_CONSOLE_LOG=$dir/console.log
	read -ra words <<<"$options"
	"$top/bin/ntguest" "${words[@]}" --type kvm --name "$VMAV_LAB_DOMAIN" --kernel "$dir/guest.elf" \
		--console-socket "$VMAV_LAB_CONSOLE" --console-log "$VMAV_LAB_CONSOLE_LOG" >"$dir/domain.xml"
	"$top/testdata/with-libvirt.sh" "$here/with-domain.sh" "$dir/domain.xml" "$@" || status=$?
fi

# The guests are gone; their ends are handled by delayed work.
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
