#!/usr/bin/env bash
# Tests the Debian packages of build/packages: lintian, then in a Debian of its own that
# systemd boots in a container: install, use, upgrade, remove, purge (test/inside.sh). It
# takes root, or sudo, for the container; the host keeps nothing of it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
export VMAV_CACHE=${VMAV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmav}

if [ "${1:-}" != inside ]; then
	packaging/root.sh fetch
	packaging/build.sh
	packaging/test/previous.sh build/packages build/packages/previous
	if [ "$(id -u)" = 0 ]; then exec "$0" inside; else exec sudo VMAV_CACHE="$VMAV_CACHE" "$0" inside; fi
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
root=$dir/root
mkdir -p "$root/test/old" "$root/test/new"
cp build/packages/*.deb "$root/test/new"
cp build/packages/previous/*.deb "$root/test/old"
cp packaging/test/*.sh "$root/test"

echo "== lintian"
systemd-nspawn --quiet -D "$root" --register=no --keep-unit --pipe \
	sh -c 'lintian --allow-root --fail-on error,warning /test/new/*.deb' 2>>"$dir/console" || { echo "test.sh: lintian complains" >&2; exit 1; }

packaging/test/unit.sh "$root" /test/inside.sh
echo "== boot"
timeout 900 systemd-nspawn --quiet -D "$root" --register=no --keep-unit --machine="vmav-test-$$" --private-network \
	--capability=all --console=pipe --boot </dev/null >"$dir/console" 2>&1 &
container=$!
touch "$root/test/output"
tail -q -n +1 -f --pid=$container "$root/test/output" &
wait $container || true
container=
status=$(cat "$root/test/status" 2>/dev/null || echo none)
if [ "$status" != 0 ]; then
	tail -n 20 "$dir/console" >&2
	echo "test.sh: the test in the container ended with status $status" >&2
	exit 1
fi
