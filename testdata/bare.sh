#!/usr/bin/env bash
# Shows that two commands are enough: makes a Debian 12 that has make, git and
# ca-certificates and nothing more, clones the committed tree into it, and runs the README's
# commands there.
#
#   bare.sh [-k] [-d DIR] [COMMAND]      COMMAND: make demo && make test
#
#   -k    keep what was made, and say where it is
#   -d    what was kept: go on in it, with the tree as it is committed now
#
# It takes root, mmdebstrap and some 10 GB. The Debian's mirror, the Go module proxy and the
# npm registry are those that this host is set up with. The root is entered by chroot, so
# the kernel, the network and the devices are this host's; of what is in the way there
# libvirt is told to make no namespaces for its guests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

keep='' dir=''
while getopts kd: f; do
	case $f in
	k) keep=yes ;;
	d) dir=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
command=${1:-make demo && make test}
[ "$(id -u)" = 0 ] || { echo "bare.sh: this takes root" >&2; exit 1; }

# In a mount namespace of its own, so that nothing stays mounted.
if [ -z "${VMAV_BARE:-}" ]; then
	[ -z "$dir" ] || keep=yes
	dir=${dir:-$(mktemp -d /var/tmp/vmav-bare.XXXXXX)}
	status=0
	VMAV_BARE=$dir unshare --mount --propagation private "$0" "$command" || status=$?
	if [ -n "$keep" ]; then echo "bare.sh: $dir"; else rm -rf --one-file-system "$dir"; fi
	exit $status
fi

root=$VMAV_BARE/root
if [ ! -e "$root/vmav" ]; then
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' | grep -v -e security | head -n 1)
	[ -n "$mirror" ] || { echo "bare.sh: the apt sources of this host name no mirror of bookworm" >&2; exit 1; }
	echo "bare.sh: making a Debian 12 in $root"
	mmdebstrap --variant=apt --quiet --include=make,git,ca-certificates --aptopt='Acquire::Languages "none"' bookworm "$root" "$mirror"
	# What of this host says how the mirror and the registries are reached: apt's settings for
	# fetching, certificates, and names.
	for f in /etc/apt/apt.conf /etc/apt/apt.conf.d/* /etc/apt/auth.conf /etc/apt/auth.conf.d/*; do
		case $f in
		*/auth.conf*) [ ! -f "$f" ] || install -D "$f" "$root$f" ;;
		*) if grep -qs '^ *Acquire::' "$f"; then install -D "$f" "$root$f"; fi ;;
		esac
	done
	if [ -d /usr/local/share/ca-certificates ]; then
		mkdir -p "$root/usr/local/share/ca-certificates"
		cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
		chroot "$root" update-ca-certificates >/dev/null 2>&1
	fi
	for f in /etc/resolv.conf /etc/hosts; do [ ! -e $f ] || cp -L $f "$root/etc/"; done
	git clone -q . "$root/vmav"
	# In a chroot libvirt cannot make a /dev of its own for each guest. dpkg keeps this file.
	mkdir -p "$root/etc/libvirt"
	printf 'namespaces = []\n' >"$root/etc/libvirt/qemu.conf"
	echo 'DPkg::Options { "--force-confold"; };' >"$root/etc/apt/apt.conf.d/90bare"
else
	git -C "$root/vmav" fetch -q "$PWD" HEAD
	git -C "$root/vmav" reset -q --hard FETCH_HEAD
fi

# Its / is a mount, as that of a machine is: commands that take a mount namespace want that.
mount --bind "$root" "$root"
for d in proc sys dev run; do mkdir -p "$root/$d"; done
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 run "$root/run"
env=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8)
for v in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY GOPROXY GOSUMDB GONOSUMDB; do
	[ -z "${!v:-}" ] || env+=("$v=${!v}")
done
if command -v go >/dev/null; then
	for v in GOPROXY GOSUMDB GONOSUMDB; do env+=("$v=$(go env $v)"); done
fi
if command -v npm >/dev/null; then env+=("npm_config_registry=$(npm config get registry)"); fi
exec chroot "$root" env -i "${env[@]}" bash -c "cd /vmav && $command"
