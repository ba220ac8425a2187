#!/usr/bin/env bash
# Runs a command with a libvirt at qemu:///session:
#
#   with-libvirt.sh COMMAND [ARG …]
#
# For an ordinary user that libvirt starts by itself. For root the address is the
# system daemon's: where none runs, one is started for as long as the command runs.
# tini adopts and reaps the processes that the daemon leaves behind; where init does
# not, libvirt waits seconds for each.
set -euo pipefail

# Several runs may share the daemon: each holds this lock, and the one that started the
# daemon stops it when the others are done.
if [ "$(id -u)" = 0 ]; then
	exec 9>/run/vmav-with-libvirt.lock
	flock -s 9
fi

run=$(mktemp -d "${TMPDIR:-/tmp}/vmav-libvirt.XXXXXX")
started=()

cleanup() {
	[ ${#started[@]} = 0 ] || flock -w 1800 -x 9 || true
	for ((i = ${#started[@]} - 1; i >= 0; i--)); do
		kill "${started[i]}" 2>/dev/null || true
		wait "${started[i]}" 2>/dev/null || true
	done
	rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A /dev/kvm that libvirt's own probe of QEMU may open, but its QEMU user may not, has libvirt
# probe anew for every domain, which takes seconds each time. So the daemon, and nobody else,
# sees one that all may open. In the lab udev's work is done already.
private=()
if [ -c /dev/kvm ] && [ -z "${VMAV_LAB:-}" ] && unshare --mount true 2>/dev/null; then
	private=(unshare --mount --propagation slave sh -c '
		mkdir "$1" && mount -t tmpfs -o mode=755 vmav-test "$1" &&
			mknod -m 666 "$1/kvm" c "$2" "$3" && mount --bind "$1/kvm" /dev/kvm ||
			echo "with-libvirt.sh: the daemon has the host'"'"'s own /dev/kvm"
		shift 3
		exec "$@"' sh "$run/dev" $((0x$(stat -c %t /dev/kvm))) $((0x$(stat -c %T /dev/kvm))))
fi

# daemon NAME [AROUND...]: starts a libvirt daemon.
daemon() {
	setsid "${@:2}" tini -s -- "/usr/sbin/$1" -p "$run/$1.pid" >"$run/$1.log" 2>&1 </dev/null 8>&- 9>&- &
	started+=($!)
}

# ours PID: does this process have the log daemon's socket that is seen here? One in a root of
# its own, such as a container's, has another.
ours() { [ "/proc/$1/root/run/libvirt/virtlogd-sock" -ef /run/libvirt/virtlogd-sock ]; }

logs() {
	local pid
	for pid in $(pgrep -x -u 0 virtlogd); do
		if ours "$pid"; then return 0; fi
	done
	return 1
}

answers() { virsh -q -c qemu:///session list >/dev/null 2>&1; }
if [ "$(id -u)" = 0 ]; then
	exec 8>/run/vmav-with-libvirt-start.lock
	flock 8
fi
if [ "$(id -u)" = 0 ] && ! answers; then
	# Another user's daemons are not ours.
	logs || daemon virtlogd
	daemon libvirtd "${private[@]}"
	for _ in $(seq 600); do
		answers && break
		sleep 0.1
	done
fi
if ! virsh -q -c qemu:///session list >/dev/null; then
	echo "with-libvirt.sh: no libvirt answers at qemu:///session; what the daemons said:" >&2
	cat "$run"/*.log >&2 2>/dev/null || true
	exit 1
fi
exec 8>&-
status=0
"$@" 9>&- || status=$?
exit $status
