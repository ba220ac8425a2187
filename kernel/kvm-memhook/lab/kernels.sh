#!/usr/bin/env bash
# Makes a Debian kernel available to the lab and to the build: for each series a
# private root that holds the headers with the compiler they belong to, and
# beside it the unpacked kernel image and modules. Everything comes from the
# mirror that the host's own apt sources name; the host's apt state, its
# packages and its kernel stay as they are.
#
#   kernels.sh list            the series known
#   kernels.sh fetch SERIES    fetch and unpack, unless it is there already
#   kernels.sh env SERIES      print ROOT= RELEASE= VMLINUZ= MODULES= for eval
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin # depmod, for a user whose PATH lacks it

cache=${VMAV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmav}/kernels

# suite_of SERIES: the Debian suite that packages it.
suite_of() {
	case $1 in
	5.10) echo bullseye ;;
	6.1) echo bookworm ;;
	6.12) echo trixie ;;
	7.2) echo forky ;;
	6.1-debug) echo bookworm ;;
	*) echo "kernels.sh: no kernel series $1 (have: 5.10 6.1 6.12 7.2 6.1-debug)" >&2; return 1 ;;
	esac
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

mirror() {
	local m
	m=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
		grep -v -e security | head -n 1)
	[ -n "$m" ] || { echo "kernels.sh: the apt sources of this host name no Debian mirror (is apt-get update needed?)" >&2; return 1; }
	echo "$m"
}

# packaged SUITE DIR MIRROR: headers with their compiler, and the image beside them.
packaged() {
	# The image is unpacked, never installed: its scripts would make an
	# initramfs and look for a boot loader. From 7.2 it comes in parts.
	as_root mmdebstrap --variant=apt --quiet \
		--aptopt='Acquire::Check-Valid-Until "false"' \
		--aptopt='Acquire::Languages "none"' \
		--include=linux-headers-amd64,make,sparse,libelf1 \
		--customize-hook='
			set -eu
			release=$(ls "$1/lib/modules")
			mkdir -p "$1/kernel/deb"
			chmod 777 "$1/kernel/deb"
			for p in image binary modules base; do
				chroot "$1" apt-cache show "linux-$p-$release" >/dev/null 2>&1 || continue
				chroot "$1" sh -c "cd /kernel/deb && apt-get -q download linux-$p-$release"
			done
			for d in "$1"/kernel/deb/*.deb; do dpkg-deb -x "$d" "$1/kernel"; done
			rm -r "$1/kernel/deb"' \
		"$1" "$2/root" "$3"
}

fetch() {
	local series=$1 suite dir log m
	suite=$(suite_of "$series")
	dir=$cache/$series
	[ -e "$dir/complete" ] && return
	m=$(mirror)
	mkdir -p "$cache"
	# One at a time: whoever waited finds it done.
	exec 9>"$cache/$series.lock"
	flock 9
	[ -e "$dir/complete" ] && return
	as_root rm -rf "$dir"
	mkdir -p "$dir"
	log=$dir/log
	echo "kernels.sh: fetching Linux $series from $suite into $dir" >&2
	case $series in
	*-debug) as_root "$here/debug-kernel.sh" "${series%-debug}" "$suite" "$m" "$dir" >"$log" 2>&1 9>&- ;;
	*) packaged "$suite" "$dir" "$m" >"$log" 2>&1 9>&- ;;
	esac || {
		tail -n 20 "$log" >&2
		echo "kernels.sh: cannot make the private root for $series; the log is $log" >&2
		return 1
	}
	local release
	release=$(ls "$dir/root/lib/modules")
	local modules=$dir/root/kernel/lib/modules
	[ -d "$modules" ] || modules=$dir/root/kernel/usr/lib/modules
	as_root depmod -b "$(dirname "$(dirname "$modules")")" "$release"
	touch "$dir/complete"
}

# print_env SERIES: where the parts are, as shell assignments.
print_env() {
	local root=$cache/$1/root release k=
	[ -e "$cache/$1/complete" ] || { echo "kernels.sh: Linux $1 is not fetched" >&2; return 1; }
	release=$(ls "$root/lib/modules")
	for k in "$root/kernel/boot/vmlinuz-$release" "$root/kernel/usr/lib/modules/$release/vmlinuz" "$root/kernel/lib/modules/$release/vmlinuz"; do
		[ -e "$k" ] && break
	done
	local m=$root/kernel/lib/modules
	[ -d "$m" ] || m=$root/kernel/usr/lib/modules
	printf 'ROOT=%q RELEASE=%q VMLINUZ=%q MODULES=%q\n' "$root" "$release" "$k" "$m/$release"
}

case ${1:-} in
list) echo 5.10 6.1 6.12 7.2 6.1-debug ;;
fetch) fetch "$2" ;;
env) print_env "$2" ;;
*) sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 2 ;;
esac
