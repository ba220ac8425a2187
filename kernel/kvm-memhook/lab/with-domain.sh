#!/usr/bin/env bash
# Runs inside the lab, with a libvirt: boots the NT test guest as a KVM domain, waits
# until its console says that it lives, runs a command and destroys the domain.
#
#   with-domain.sh 'NTGUEST OPTIONS' COMMAND [ARG...]
#
# The options are those of `ntguest domain`, such as '--build 10.0.19041', or ''.
# The command sees
#
#   VMAV_LAB_DOMAIN          the domain's name, at qemu:///session
#   VMAV_LAB_CONSOLE         its console, a UNIX socket
#   VMAV_LAB_CONSOLE_LOG     what its console has said
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ntguest=$here/../../../bin/ntguest
uri=qemu:///session
read -ra options <<<"$1"
shift

dir=$(mktemp -d /tmp/vmav-lab.XXXXXX)
chmod 777 "$dir" # libvirt's QEMU reads the kernel and makes the socket here
export VMAV_LAB_DOMAIN=lab VMAV_LAB_CONSOLE=$dir/console VMAV_LAB_CONSOLE_LOG=$dir/console.log

cleanup() {
	status=$?
	virsh -q -c $uri destroy "$VMAV_LAB_DOMAIN" >/dev/null 2>&1 || true
	exit $status
}
trap cleanup EXIT

"$ntguest" domain "${options[@]}" --type kvm --name "$VMAV_LAB_DOMAIN" --kernel "$dir/guest.elf" \
	--console-socket "$VMAV_LAB_CONSOLE" --console-log "$VMAV_LAB_CONSOLE_LOG" >"$dir/domain.xml"
virsh -q -c $uri create "$dir/domain.xml"
beats() { grep -ac "^HB " "$VMAV_LAB_CONSOLE_LOG" 2>/dev/null || true; }
for _ in $(seq 600); do
	[ "$(beats)" -ge 2 ] && break
	sleep 0.5
done
if [ "$(beats)" -lt 2 ]; then
	echo "with-domain.sh: the guest does not live; its console ends with" >&2
	tail -n 20 "$VMAV_LAB_CONSOLE_LOG" >&2
	exit 1
fi
"$@"
