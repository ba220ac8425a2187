#!/usr/bin/env bash
# Runs a command with a libvirt daemon of its own at qemu:///session, which the command
# may kill and start again as it likes:
#
#   own-libvirt.sh COMMAND [ARG …]
#
# The command finds in $VMAV_OWN_LIBVIRT a directory with an executable `start`, which
# starts the daemon, `pid`, the daemon's process id, and `hooks`, which is the daemon's
# directory of hook scripts. Root's daemon gets a mount namespace in which libvirt's
# directories are empty ones; an ordinary user's gets directories of its own.
set -euo pipefail

if [ "${VMAV_OWN_LIBVIRT:-}" = "" ]; then
	VMAV_OWN_LIBVIRT=$(mktemp -d "${TMPDIR:-/tmp}/vmav-own.XXXXXX")
	export VMAV_OWN_LIBVIRT
	chmod 755 "$VMAV_OWN_LIBVIRT"
	status=0
	if [ "$(id -u)" = 0 ]; then
		mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /etc/libvirt /run/vmav /var/lib/vmav
		unshare --mount --propagation private "$0" "$@" || status=$?
	else
		XDG_RUNTIME_DIR=$VMAV_OWN_LIBVIRT/run XDG_CONFIG_HOME=$VMAV_OWN_LIBVIRT/config XDG_CACHE_HOME=$VMAV_OWN_LIBVIRT/cache "$0" "$@" || status=$?
	fi
	rm -rf "$VMAV_OWN_LIBVIRT"
	rmdir /run/vmav /var/lib/vmav 2>/dev/null || true
	exit $status
fi

own=$VMAV_OWN_LIBVIRT
if [ "$(id -u)" = 0 ]; then
	cp -a /etc/libvirt "$own/etc"
	cp -a /var/cache/libvirt "$own/cache" # what it knows of the QEMU programs takes seconds to find out
	# The host's vmav is not the tests': hooks that the daemon runs know no other directories.
	for dir in /run/libvirt /var/lib/libvirt /var/cache/libvirt /etc/libvirt /run/vmav /var/lib/vmav; do
		mount -t tmpfs -o mode=755 vmav-test "$dir"
	done
	cp -a "$own/etc/." /etc/libvirt/
	cp -a "$own/cache/." /var/cache/libvirt/
	# A /dev/kvm that libvirt's own probe of QEMU may open, but its QEMU user may not, has
	# libvirt probe anew for every domain.
	if [ -c /dev/kvm ]; then
		mknod -m 666 /run/libvirt/kvm c $((0x$(stat -c %t /dev/kvm))) $((0x$(stat -c %T /dev/kvm)))
		mount --bind /run/libvirt/kvm /dev/kvm
	fi
	# No virtlogd: what a domain says to a file goes there directly.
	echo 'stdio_handler = "file"' >>/etc/libvirt/qemu.conf
	hooks=/etc/libvirt/hooks
else
	mkdir -p -m 700 "$own/run" "$own/config/libvirt" "$own/cache"
	echo 'stdio_handler = "file"' >"$own/config/libvirt/qemu.conf"
	hooks=$own/config/libvirt/hooks
fi
mkdir -p "$hooks"
ln -s "$hooks" "$own/hooks"
cat >"$own/start" <<END
#!/bin/sh
# tini reaps what the daemon leaves behind.
setsid tini -s -- /usr/sbin/libvirtd -p "$own/pid" >>"$own/log" 2>&1 </dev/null &
END
chmod 755 "$own/start"

cleanup() {
	# These files end without a newline.
	for file in "$own/pid" /run/libvirt/qemu/*.pid "$own"/run/libvirt/qemu/run/*.pid; do
		kill "$(cat "$file" 2>/dev/null)" 2>/dev/null || true
	done
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$own/start"
for _ in $(seq 600); do
	virsh -q -c qemu:///session list >/dev/null 2>&1 && break
	sleep 0.1
done
if ! virsh -q -c qemu:///session list >/dev/null; then
	echo "own-libvirt.sh: the daemon does not answer; what it said:" >&2
	cat "$own/log" >&2
	exit 1
fi
status=0
"$@" || status=$?
exit $status
