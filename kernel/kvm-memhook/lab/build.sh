#!/usr/bin/env bash
# Builds the module for one of the lab's kernels, in that kernel's private root
# and with its compiler, and leaves it in a directory of the caller's.
#
#   build.sh [-s] SERIES DIR
#
#   -s   run sparse as well
#
# Prints one line: release, compiler, number of warnings. A warning is an error.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sparse=
[ "${1:-}" = -s ] && { sparse="C=2 CF=-Wsparse-error"; shift; }
series=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

"$here/kernels.sh" fetch "$series"
eval "$("$here/kernels.sh" env "$series")"

# A copy of the sources inside the root, so that each kernel's objects are its own.
src=$ROOT/build/$$
as_root rm -rf "$src"
as_root mkdir -p "$src"
trap 'as_root rm -rf "$src"' EXIT
(cd "$here/.." && tar -c --exclude='*.o' --exclude='*.ko' --exclude=lab --exclude=selftest .) | as_root tar -x -C "$src" --no-same-owner

# The headers of 7.2 lack the script that asks whether the checker works; without it
# the build goes on unchecked. Whether it ran is looked at below.
for headers in "$ROOT"/usr/src/linux-headers-*-common; do
	[ -z "$sparse" ] || [ ! -d "$headers" ] || [ -e "$headers/scripts/checker-valid.sh" ] ||
		printf '#!/bin/sh\necho 1\n' | as_root install -m 755 /dev/stdin "$headers/scripts/checker-valid.sh"
done

log=$out/build.log
# objtool wants /proc; the mount is seen by this command only.
if ! as_root unshare -m sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" make -C "/lib/modules/$2/build" M="$3" '"$sparse"' modules' \
	sh "$ROOT" "$RELEASE" "/build/$$" >"$log" 2>&1; then
	grep -E -m 30 'error|Error|ERROR|warning' "$log" >&2 || tail -n 30 "$log" >&2
	echo "build.sh: the module does not build for $RELEASE; the log is $log" >&2
	exit 1
fi
for ko in "$src"/*.ko "$src"/sample/*.ko; do install -m 644 "$ko" "$out/"; done
warnings=$(grep -ciE 'warning|undefined!' "$log" || true)
compiler=$(readelf -p .comment "$out/kvm_memhook.ko" | sed -n 's/.*\(GCC: .*\)/\1/p' | head -n 1)
printf '%-24s %-48s warnings: %s\n' "$RELEASE" "${compiler%%$'\n'*}" "$warnings"
if [ -n "$sparse" ] && [ "$(grep -c '^ *CHECK ' "$log")" -lt "$(grep -cE '^ *CC \[M\] .*\.o' <(grep -vE '\.mod\.o|module-common' "$log"))" ]; then
	echo "build.sh: sparse did not run; the log is $log" >&2
	exit 1
fi
if [ "$warnings" != 0 ]; then
	grep -iE 'warning|undefined!' "$log" >&2
	exit 1
fi
