#!/usr/bin/env bash
# Tests the Debian packages in a Debian of their own (root.sh), which systemd boots: they are
# installed, used on a guest, upgraded, removed and purged (test/inside.sh).
#
#   test.sh        in a container on this kernel, with an emulated guest; lintian before
#   test.sh lab    in the nested lab, with DKMS, the module and a KVM guest (docs/MODULE.md)
#
# It takes root, or sudo; the host keeps nothing of it. bin/ must be there (make build).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
export VMAV_CACHE=${VMAV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmav}
where=${1:-container}

if [ "${2:-}" != prepared ]; then
	packaging/root.sh fetch
	packaging/build.sh
	packaging/test/previous.sh build/packages build/packages/previous
	if [ "$(id -u)" = 0 ]; then exec "$0" "$where" prepared; else exec sudo VMAV_CACHE="$VMAV_CACHE" "$0" "$where" prepared; fi
fi

dir=$(mktemp -d /var/tmp/vmav-packages.XXXXXX)
container=
cleanup() {
	if [ -n "$container" ] && kill -0 "$container" 2>/dev/null; then
		kill -KILL "$container"
		wait "$container" 2>/dev/null || true
	fi
	packaging/root.sh umount "$dir"
}
packaging/root.sh mount "$dir"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$dir/root
mkdir -p "$root"/test/{old,new,guest}
chmod 777 "$root/test/guest" # libvirt's QEMU reads and writes here
cp build/packages/*.deb "$root/test/new"
cp build/packages/previous/*.deb "$root/test/old"
cp packaging/test/*.{sh,py} "$root/test"
guest() {
	bin/ntguest domain --build 10.0.19041 --type "$1" --name win10 --kernel "$root/test/guest/guest.elf" \
		--console-socket "$root/test/guest/console" | sed "s#$root/#/#g" >"$root/test/guest/domain.xml"
}

if [ "$where" = lab ]; then
	guest kvm
	kernel/kvm-memhook/lab/run.sh -r "$root" -t 7200 -o build/packages/lab 6.1 /test/inside.sh lab
	exit
fi

echo "== lintian"
systemd-nspawn --quiet -D "$root" --register=no --keep-unit --pipe \
	sh -c 'lintian --allow-root --fail-on error,warning /test/new/*.deb' 2>>"$dir/console" ||
	{ echo "test.sh: lintian complains" >&2; exit 1; }

echo "== boot"
guest qemu
packaging/test/unit.sh "$root" "/test/inside.sh container"
: >"$root/test/output"
timeout 1800 systemd-nspawn --quiet -D "$root" --register=no --keep-unit --machine="vmav-test-$$" --private-network \
	--capability=all --console=pipe --boot </dev/null >>"$dir/console" 2>&1 &
container=$!
tail -q -n +1 -f --pid=$container "$root/test/output" &
shown=$!
wait $container || true
container=
wait $shown
status=$(cat "$root/test/status" 2>/dev/null || echo none)
if [ "$status" != 0 ]; then
	tail -n 20 "$dir/console" >&2
	echo "test.sh: the test in the container ended with status $status" >&2
	exit 1
fi
