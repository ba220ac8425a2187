#!/usr/bin/env bash
# Makes a Debian 12 that packages are tested in: with systemd, libvirt, QEMU, ClamAV, DKMS
# and lintian, and with the headers and the compiler of the lab's kernel 6.1. It lies in
# the cache; what is done in it stays in an overlay. Packages come from the mirror that
# the host's own apt sources name.
#
#   root.sh fetch         make it, unless it is there already
#   root.sh mount DIR     mount it at DIR/root, with what is written going to DIR/upper (root)
#   root.sh umount DIR    unmount it, and remove DIR (root)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kernels=$here/../kernel/kvm-memhook/lab/kernels.sh

include=systemd,systemd-sysv,dbus,udev,libvirt-daemon-system,libvirt-clients,qemu-system-x86,seabios
include+=,clamav-daemon,dkms,kmod,logrotate,cron,man-db,mandoc,lintian,procps,python3-minimal,passwd,jq

cache=${VMAV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmav}
# Another list of packages is another root.
dir=$cache/debian/$(printf '%s' "$include" | sha256sum | cut -c 1-12)

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

mirror() {
	local m
	m=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' 2>/dev/null |
		grep -v -e security | head -n 1)
	[ -n "$m" ] || { echo "root.sh: the apt sources of this host name no mirror of bookworm (is apt-get update needed?)" >&2; return 1; }
	echo "$m"
}

fetch() {
	local m
	"$kernels" fetch 6.1
	[ -e "$dir/complete" ] && return
	mkdir -p "$cache/debian"
	exec 9>"$cache/debian/lock" # one at a time: whoever waited finds it done
	flock 9
	[ -e "$dir/complete" ] && return
	m=$(mirror)
	as_root rm -rf "$dir"
	mkdir -p "$dir"
	echo "root.sh: making a Debian 12 in $dir" >&2
	as_root mmdebstrap --variant=apt --quiet --include="$include" \
		--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
		--customize-hook='rm -f "$1/etc/machine-id"; : >"$1/etc/machine-id"; echo vmav-test >"$1/etc/hostname"' \
		bookworm "$dir/root" "$m" >"$dir/log" 2>&1 9>&- || {
		tail -n 20 "$dir/log" >&2
		echo "root.sh: cannot make the Debian; the log is $dir/log" >&2
		return 1
	}
	touch "$dir/complete"
}

case ${1:-} in
fetch) fetch ;;
mount)
	eval "$("$kernels" env 6.1)"
	mkdir -p "$2/upper" "$2/work" "$2/root"
	# The kernel's headers, and the compiler they belong to, are those that the lab builds with.
	mount -t overlay overlay -o "lowerdir=$dir/root:$ROOT,upperdir=$2/upper,workdir=$2/work" "$2/root"
	# The kernel's modules lie beside its headers, as if its package were installed.
	cp "$MODULES"/modules.* "$2/root/lib/modules/$RELEASE/"
	ln -s "${MODULES#"$ROOT"}/kernel" "$2/root/lib/modules/$RELEASE/kernel"
	;;
umount)
	if mountpoint -q "$2/root"; then umount "$2/root" 2>/dev/null || umount -l "$2/root"; fi
	rm -rf --one-file-system "$2"
	;;
*) sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 2 ;;
esac
