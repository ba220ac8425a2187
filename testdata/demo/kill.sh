#!/usr/bin/env bash
# Runs inside the lab, with the module loaded and the NT test guest running as a KVM
# domain (kernel/kvm-memhook/lab/with-module.sh): finds the infected process, has it
# terminated, and shows from the guest that it is gone.
#
#   kill.sh SIGNATURES
set -euo pipefail
cd "$(dirname "$0")/../.."
database=$1
vmav=bin/vmav
export LIBVIRT_DEFAULT_URI=qemu:///session

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "Linux $(uname -r) with its stock kvm_amd, kvm-memhook loaded, a Windows domain under KVM"
run $vmav list
say "The verdict is carried out: its thread is sent into the guest's own NtTerminateProcess"
status=0
run $vmav scan "$VMAV_LAB_DOMAIN" --database "$database" --action kill || status=$?
if [ $status != 1 ]; then
	echo "demo: scan ended with status $status, where 1 (something found, and dealt with) was expected" >&2
	exit 1
fi
say "What the guest says of it, and that the guest lives"
run $vmav ps "$VMAV_LAB_DOMAIN" | grep -E '^\$|PID|malware'
grep -a 'EXIT .*malware.exe' "$VMAV_LAB_CONSOLE_LOG"
beats() { grep -ac '^HB ' "$VMAV_LAB_CONSOLE_LOG"; }
was=$(beats)
for _ in $(seq 180); do
	[ "$(beats)" -gt "$was" ] && break
	sleep 1
done
if [ "$(beats)" -le "$was" ]; then
	echo "demo: the guest's heart has not beaten for three minutes" >&2
	exit 1
fi
grep -a '^HB ' "$VMAV_LAB_CONSOLE_LOG" | tail -n 1
