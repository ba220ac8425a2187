#!/usr/bin/env bash
# Tests the Debian packages in a Debian of their own (root.sh).
#
#   test.sh contents   what is in them; nothing is installed (test/contents.sh)
#   test.sh            systemd boots that Debian in a container on this kernel, and they are
#                      installed, used on an emulated guest, upgraded, removed and purged
#                      (test/inside.sh)
#   test.sh lab        the same in the nested lab, with DKMS, the module and a KVM guest
#                      (docs/MODULE.md)
#
# It takes root, or sudo; the host keeps nothing of it, also where it is interrupted. bin/ must
# be there (make build; guest too, but for the contents). A machine on which no root can be mounted or booted at all (in a
# container without the rights to, say) is told of, and passes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
export VMAV_CACHE=${VMAV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmav}
where=${1:-container}

if [ "${2:-}" != prepared ]; then
	packaging/root.sh fetch
	packaging/build.sh
	[ "$where" = contents ] || packaging/test/previous.sh build/packages build/packages/previous
	if [ "$(id -u)" = 0 ]; then exec packaging/test.sh "$where" prepared; fi
	exec sudo VMAV_CACHE="$VMAV_CACHE" packaging/test.sh "$where" prepared
fi

dir=$(mktemp -d /var/tmp/vmav-packages.XXXXXX)
root=$dir/root
child=
# start COMMAND: runs it beside the shell, which so can be interrupted, in a session of its
# own, all of which can be ended.
start() {
	setsid "$@" &
	child=$!
}
ended() { # waits for it, and has its status
	local status=0
	wait "$child" || status=$?
	child=
	return $status
}
cleanup() {
	trap '' INT TERM HUP
	if [ -n "$child" ]; then
		kill -TERM -- "-$child" 2>/dev/null || true
		# systemd shuts a container down in its own time.
		timeout 5 tail -f /dev/null --pid="$child" || kill -KILL -- "-$child" 2>/dev/null || true
		wait "$child" 2>/dev/null || true
	fi
	packaging/root.sh umount "$dir"
	# What the user's own next run writes over is the user's.
	[ -z "${SUDO_UID:-}" ] || [ ! -d build/packages/lab ] || chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" build/packages/lab
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
skip() {
	echo "test.sh: SKIPPED, the packages are not tested: $1" >&2
	exit 0
}

mkdir "$dir/probe" "$dir/probe"/{lower,upper,work,root}
why=$(mount -t overlay overlay -o "lowerdir=$dir/probe/lower,upperdir=$dir/probe/upper,workdir=$dir/probe/work" "$dir/probe/root" 2>&1) ||
	skip "this machine mounts no overlay below /var/tmp: $why"
umount "$dir/probe/root"
packaging/root.sh mount "$dir"
mkdir -p "$root"/test/{old,new,guest}
chmod 777 "$root/test/guest" # libvirt's QEMU reads and writes here
cp build/packages/*.deb "$root/test/new"
cp packaging/test/*.{sh,py,txt} "$root/test"
if [ "$where" = contents ]; then
	git -C kernel/kvm-memhook ls-files >"$root/test/module"
	# man and lintian want /proc; the mount is seen by this command only.
	start unshare -m sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" /test/contents.sh' sh "$root" </dev/null
	ended || { echo "test.sh: the packages' contents are wrong" >&2; exit 1; }
	exit 0
fi
cp build/packages/previous/*.deb "$root/test/old"
guest() {
	bin/ntguest domain --build 10.0.19041 --type "$1" --name win10 --kernel "$root/test/guest/guest.elf" \
		--console-socket "$root/test/guest/console" | sed "s#$root/#/#g" >"$root/test/guest/domain.xml"
}

if [ "$where" = lab ]; then
	guest kvm
	start kernel/kvm-memhook/lab/run.sh -r "$root" -t 7200 -o build/packages/lab 6.1 /test/inside.sh lab
	ended || exit
	exit 0
fi

command -v systemd-nspawn >/dev/null || { echo "test.sh: no systemd-nspawn here; run: make test-deps" >&2; exit 1; }
nspawn=(systemd-nspawn --quiet -D "$root" --register=no --keep-unit)
boots=("${nspawn[@]}" --machine="vmav-test-$$" --private-network --capability=all --console=pipe --boot)
# A boot of nothing: what fails here is the machine. The limits are for what stands still: a
# busy machine was seen to take five times as long as an idle one.
start timeout -k 5 300 "${boots[@]}" systemd.unit=poweroff.target </dev/null >"$dir/console" 2>&1
ended || case $? in
124 | 137) echo "test.sh: systemd does not boot in a container in 300 s: $(grep -a . "$dir/console" | tail -n 1)" >&2; exit 1 ;;
*) skip "systemd does not boot in a container here: $(grep -a . "$dir/console" | tail -n 1)" ;;
esac

echo "== boot"
guest qemu
packaging/test/unit.sh "$root" "/test/inside.sh container"
: >"$root/test/output"
start timeout -k 5 2700 "${boots[@]}" </dev/null >>"$dir/console" 2>&1
tail -q -n +1 -f --pid="$child" "$root/test/output" &
shown=$!
ended || true
wait $shown
status=$(cat "$root/test/status" 2>/dev/null || echo none)
if [ "$status" != 0 ]; then
	tail -n 20 "$dir/console" >&2
	echo "test.sh: the test in the container ended with status $status" >&2
	exit 1
fi
