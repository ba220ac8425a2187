#!/usr/bin/env bash
# The main job on a real VM: boots the NT test guest as a libvirt domain, lists its
# processes, rebuilds what runs in them and has ClamAV find the infected one. Then the
# same with the kernel module, which needs a KVM that may be touched: a stock Debian
# kernel in an emulated machine, where the infected process is killed.
#
# Nothing else of the host is touched: the domain lives in the session libvirt (see
# ../with-libvirt.sh), clamd is a private one, this host's kernel is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=${1:-10.0.19041}
uri=qemu:///session
name=vmav-demo-$$
vmav=bin/vmav
work=$(mktemp -d "${TMPDIR:-/tmp}/vmav-demo.XXXXXX")
chmod 711 "$work" # libvirt's QEMU reads the guest's kernel from here
export VMAV_STATE_DIRECTORY=$work/state # this host's history is not the demo's

cleanup() {
	status=$?
	virsh -q -c $uri destroy "$name" >/dev/null 2>&1 || true
	rm -rf "$work"
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "A guest laid out and running as Windows $build, as a libvirt domain"
bin/ntguest domain --build "$build" --name "$name" --kernel "$work/guest.elf" --console-log "$work/console.log" >"$work/domain.xml"
virsh -q -c $uri create "$work/domain.xml"
# vmav says by itself when the guest's kernel is up.
up=
for _ in $(seq 180); do
	if $vmav -c $uri ps "$name" >/dev/null 2>&1; then up=yes; break; fi
	sleep 1
done
if [ -z "$up" ]; then
	echo "demo: the guest's kernel was not up in three minutes; vmav says, and then the guest's console" >&2
	$vmav -c $uri ps "$name" >&2 || true
	tail -n 20 "$work/console.log" >&2 || true
	exit 1
fi
run $vmav -c $uri list

say "Its processes, read from outside"
run $vmav -c $uri ps "$name"

say "Their programs, rebuilt and scanned"
# A signature for the code of the guest's malware.exe, in ClamAV's own form.
printf 'Vmav.Test.Malware:1:*:%s\n' "$(printf 'VMAV-TEST-MALWARE' | od -An -tx1 | tr -d ' \n')" >"$work/demo.ndb"
status=0
run $vmav -c $uri scan "$name" --database "$work/demo.ndb" || status=$?
if [ $status != 1 ]; then
	echo "demo: scan ended with status $status, where 1 (something found) was expected" >&2
	exit 1
fi

say "And killed: the same guest under KVM, on a kernel of its own"
virsh -q -c $uri destroy "$name"
series=6.1
status=0
LAB_AGAIN=1 kernel/kvm-memhook/lab/run-module.sh -t 1800 -g "--build $build" -o "$work/lab" $series testdata/demo/kill.sh "$work/demo.ndb" || status=$?
if [ $status != 0 ]; then
	echo "demo: the kill in the lab ended with status $status" >&2
	exit 1
fi
