#!/usr/bin/env bash
# Runs inside the lab, under with-module.sh: boots the lab's own kernel under KVM with
# a balloon, room for DIMMs and a virtio-mem device, and runs kmh-resize on it, which
# takes its memory away and gives it back. The lab must have all of it in the end.
#
#   resize.sh KMH-RESIZE
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
test=$1

work=$(mktemp -d)
console=/lab/out/guest-console.log
rm -f $console
cleanup() {
	status=$?
	if [ $status != 0 ]; then
		tail -n 60 $console "$work/qemu.log" >&2 2>/dev/null || true
		mv $console /lab/out/guest-console-failed.log 2>/dev/null || true
	fi
	[ -z "${qemu:-}" ] || kill -9 "$qemu" 2>/dev/null || true
	rm -rf "$work"
	exit $status
}
trap cleanup EXIT

# The guest writes over half of its free memory again and again, a new pattern each
# time, and says how much memory it has. At first it writes over most of it.
cat >"$work/init" <<'S'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=100% tmpfs /tmp
while read -r m; do insmod "/modules/$m" || echo "cannot load $m" >/dev/ttyS0; done </modules/order
mib() { awk -v w="$1:" '$1 == w { print int($2 / 1024) }' /proc/meminfo; }
fill() { # MIB: of a pattern of this round
	yes "this is what the guest wrote in round $n" | dd of=/tmp/pattern bs=64k count=16 iflag=fullblock 2>/dev/null
	p=/tmp/pattern
	i=0
	while [ $i -lt "$1" ]; do
		cat $p $p $p $p $p $p $p $p >>/tmp/fill
		i=$((i + 8))
	done
	rm /tmp/fill
}
n=0
fill $(($(mib MemAvailable) * 3 / 4))
while :; do
	n=$((n + 1))
	fill $(($(mib MemAvailable) / 2))
	echo "MEM $(mib MemTotal) $n" >/dev/ttyS0
	sleep 0.1
done
S
"$here/initramfs.sh" "$work/initrd" "$work/init" "/lib/modules/$(uname -r)" virtio_pci virtio_balloon virtio_mem

# What reading files took from the host is not lost: the caches are emptied first.
available() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo
}
cp "$LAB_VMLINUZ" "$work/vmlinuz"
# attempt: one guest; 75 if it stands still, which the emulation of SVM does to it now
# and then (docs/MODULE.md). It has no features that the emulation offers only in part,
# and ends each interrupt by an exit, so that the emulation has no time to repeat it.
attempt() {
	local status=0
	rm -f $console "$work/qmp"
	qemu-system-x86_64 -machine q35 -accel kvm -cpu qemu64,kvm-pv-eoi=off,+x2apic,+tsc-deadline -smp 1 -m 384M,slots=4,maxmem=2G -nodefaults -vga none \
		-display none -no-reboot -serial file:$console -qmp unix:"$work/qmp",server=on,wait=off \
		-kernel "$work/vmlinuz" -initrd "$work/initrd" \
		-append "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable swiotlb=noforce" \
		-device virtio-balloon-pci -object memory-backend-ram,id=vm0,size=256M \
		-device virtio-mem-pci,id=vmem0,memdev=vm0,requested-size=0 >"$work/qemu.log" 2>&1 </dev/null &
	qemu=$!
	for _ in $(seq 600); do
		grep -qa '^MEM ' $console 2>/dev/null && break
		kill -0 "$qemu" 2>/dev/null || break
		sleep 0.5
	done
	if grep -qa '^MEM ' $console; then
		"$test" "$qemu" "$work/qmp" $console || status=$?
	else
		echo "resize.sh: the guest did not come up" >&2
		status=75
	fi
	kill "$qemu" 2>/dev/null || true
	wait "$qemu" || true
	qemu=
	return $status
}

before=$(available)
status=0
for _ in 1 2 3 4 5; do
	status=0
	attempt || status=$?
	[ $status = 75 ] || break
	echo "resize.sh: again, with another guest"
done
[ $status = 0 ] || exit $status
after=$(available)
echo "the host had $before MiB available before the guest, has $after after it"
[ "$after" -ge $((before - 16)) ] || { echo "resize.sh: $((before - after)) MiB are lost" >&2; exit 1; }
