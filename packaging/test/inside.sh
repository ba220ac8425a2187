#!/usr/bin/env bash
# Runs in the Debian of packaging/root.sh, booted by systemd: installs the previous build's
# packages, uses them, upgrades, removes and purges them, and fails where one of these
# leaves behind what it should not, or not what it should.
#
#   inside.sh container|lab
#
# /test/old and /test/new hold the packages, /test/guest a domain. In the lab the kernel is
# one that the module is built for, and its KVM works.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
here=$(dirname "${BASH_SOURCE[0]}")
. "$here/files.sh"

where=$1
step() { echo "== $* ($SECONDS s)"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

install_debs() { apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$1"/*.deb; }

# users: which accounts and groups there are.
accounts() { cut -d: -f1 /etc/passwd /etc/group | sort; }

mkdir -p /test/state
# What of the machine is not ours: a container's cgroups are read-only, and Debian's clamd
# waits for the official signatures, of which there are none here.
[ "$where" = lab ] || echo 'cgroup_controllers = [ ]' >>/etc/libvirt/qemu.conf
mkdir -p /etc/systemd/system/clamav-daemon.service.d
printf '[Unit]\nConditionPathExistsGlob=\n' >/etc/systemd/system/clamav-daemon.service.d/test.conf
rm -f /var/lib/man-db/auto-update # its index is of no use here, and takes a while
systemctl daemon-reload
systemctl restart libvirtd
virsh -q -c qemu:///system list --all # libvirt writes files of its own when it first runs
step "before: a list of all files"
files >/test/state/before
accounts >/test/state/accounts

step "install"
install_debs /test/old >/test/state/install.log 2>&1 || { cat /test/state/install.log; fail "apt-get install"; }
. "$here/installed.sh"
. "$here/used.sh"

step "what the user makes and changes"
echo "# the user's own line" >>/etc/vmav/vmav.toml
echo "# mine" >/etc/vmav/mine.toml
install -D /dev/null /var/lib/vmav/profiles/mine.json.gz
pid=$(systemctl show -p MainPID --value vmav-watch)

# The guest has programs that compute: the emulated processors are rather for the compiler.
[ "$where" != lab ] || systemctl set-property --runtime machine.slice CPUWeight=5

step "upgrade"
install_debs /test/new >/test/state/upgrade.log 2>&1 || { cat /test/state/upgrade.log; fail "apt-get install of the newer packages"; }
[ "$(dpkg-query -W -f '${Version}' vmav)" = "$(dpkg-deb -f /test/new/vmav_*.deb Version)" ] || fail "vmav is still the old one"
tail -n 1 /etc/vmav/vmav.toml | grep -q "the user's own line" || fail "the upgrade took the user's line out of vmav.toml"
! grep -q "of the previous build" /etc/vmav/policy.toml || fail "the upgrade left the previous build's policy.toml"
[ ! -e /etc/vmav/vmav.toml.dpkg-dist ] || fail "a file that only the user changed is at odds with the package"
systemctl --quiet is-active vmav-watch || fail "the service does not run after the upgrade"
[ "$(systemctl show -p MainPID --value vmav-watch)" != "$pid" ] || fail "the service is still the previous build's"
[ "$(dkms status -m kvm-memhook | grep -c installed)" = 1 ] || fail "dkms status after the upgrade: $(dkms status)"
[ -e /etc/libvirt/hooks/qemu.d/vmav ] || fail "the upgrade took the libvirt hook away"

for _ in $(seq 120); do
	vmav watch status --format json 2>/dev/null | jq -e '.domains[]? | select(.name == "win10" and .state == "watched")' >/dev/null && break
	sleep 0.5
done
vmav watch status
vmav watch status --format json | jq -e '.domains[]? | select(.name == "win10" and .state == "watched")' >/dev/null || fail "the new service does not watch the domain"

step "remove"
apt-get remove -y -qq vmav vmav-dkms >/test/state/remove.log 2>&1 || { cat /test/state/remove.log; fail "apt-get remove"; }
[ -e /etc/vmav/vmav.toml ] && [ -d /var/lib/vmav ] || fail "removal took configuration or history away"
[ ! -e /etc/libvirt/hooks/qemu.d/vmav ] || fail "the libvirt hook is still there"
[ -z "$(dkms status -m kvm-memhook)" ] || fail "dkms still knows the module: $(dkms status)"
[ ! -d /sys/module/kvm_memhook ] || fail "the module is still loaded"
! pgrep -ax vmav || fail "still running"
[ "$(virsh -q -c qemu:///system domstate win10 | head -n 1)" = running ] || fail "the domain does not run any more"

step "purge"
apt-get purge -y -qq vmav vmav-dkms >/test/state/purge.log 2>&1 || { cat /test/state/purge.log; fail "apt-get purge"; }
[ -e /etc/vmav/mine.toml ] && [ -e /var/lib/vmav/profiles/mine.json.gz ] || fail "purge took away what the user made"
rm -r /etc/vmav/mine.toml /var/lib/vmav/profiles/mine.json.gz
rmdir $metrics || fail "purge left metrics"
rmdir --ignore-fail-on-non-empty "$(dirname $metrics)"
rmdir /etc/vmav /var/lib/vmav/profiles /var/lib/vmav || fail "purge left more than what the user made: $(find /etc/vmav /var/lib/vmav)"
! systemctl list-units --all --no-legend 'vmav-watch*' 'vmav-sweep*' | grep . || fail "systemd still knows units"

virsh -q -c qemu:///system destroy win10

step "after: the same files"
files >/test/state/after
accounts | diff /test/state/accounts - || fail "accounts differ"
diff /test/state/before /test/state/after >/test/state/difference || { cat /test/state/difference; fail "files differ"; }
echo "files: $(wc -l </test/state/before), and none differs"
