#!/usr/bin/env bash
# Runs inside the lab: loads the stock kvm_amd and boots the lab's own kernel a
# level further down under real KVM, with an initramfs that prints one line.
# It shows that KVM works here at all; every other test builds on that.
set -euo pipefail

modprobe kvm_amd
[ -c /dev/kvm ] || { echo "nested.sh: no /dev/kvm" >&2; exit 1; }
release=$(uname -r)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/init" <<'S'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox echo "hello from nested KVM: $(/bin/busybox uname -r)" >/dev/ttyS0
/bin/busybox poweroff -f
S
"$(dirname "$0")/initramfs.sh" "$work/initrd" "$work/init" "/lib/modules/$release"
timeout 300 qemu-system-x86_64 -accel kvm -cpu host -m 256 -nodefaults -display none -no-reboot \
	-serial file:"$work/console" -kernel "$LAB_VMLINUZ" -initrd "$work/initrd" \
	-append "console=ttyS0 quiet panic=-1" </dev/null
grep -a "hello from nested KVM: $release" "$work/console" || { tail -n 20 "$work/console" >&2; exit 1; }
