#!/usr/bin/env bash
# Runs inside the lab, under with-module.sh: boots a domain of the NT test guest,
# waits until its console says that it lives, runs a command and destroys it.
#
#   with-domain.sh XML COMMAND [ARG...]
set -euo pipefail
uri=qemu:///session
xml=$1
shift

console() { grep -ac "^HB " "$VMAV_LAB_CONSOLE_LOG" 2>/dev/null || true; }
cleanup() {
	status=$?
	virsh -q -c $uri destroy "$VMAV_LAB_DOMAIN" >/dev/null 2>&1 || true
	exit $status
}
trap cleanup EXIT

virsh -q -c $uri create "$xml"
for _ in $(seq 600); do
	[ "$(console)" -ge 2 ] && break
	sleep 0.5
done
if [ "$(console)" -lt 2 ]; then
	echo "with-domain.sh: the guest does not live; its console ends with" >&2
	tail -n 20 "$VMAV_LAB_CONSOLE_LOG" >&2
	exit 1
fi
"$@"
