#!/usr/bin/env bash
# Installs what vmav is built, demonstrated and tested with, from Debian by package name.
# It is idempotent: with everything there it changes nothing and needs neither root nor the
# network.
#
#   deps.sh [build] [demo] [test]      all of them without one
#
# Go comes from Debian too where no Go new enough is on PATH: Debian 12 carries
# it in its backports suite, which is read through apt lists of our own, so that
# the host's apt configuration stays as it is.
set -euo pipefail

build=(gcc libc6-dev make pkg-config libvirt-dev git ca-certificates)
demo=(
	# the job itself: domains and the scanner
	libvirt-daemon libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
	qemu-system-x86 seabios tini procps bc clamav clamav-daemon clamav-testfiles
	# the NT test guest: its programs, and real PE files to map
	gcc-mingw-w64-x86-64-win32 gcc-mingw-w64-i686-win32 libwine wine64 libz-mingw-w64
	# the nested lab: other Debian kernels and their compilers, an initramfs
	mmdebstrap busybox-static cpio kmod xz-utils zstd
)
test=(
	# what an independent reader, Volatility 3, needs where one is given
	python3-pefile python3-capstone
	# independent readers of PDBs (llvm-pdbutil) and of compressed ones
	llvm cabextract
	# keys for bundles of profiles
	openssl
	# packages, and a root with an init to install them in
	debhelper dh-dkms systemd-container
)
# A node of one's own brings its npm, which fetches some of the tests' files.
command -v npm >/dev/null || test+=(npm)
packages=()
for group in "${@:-build demo test}"; do
	for g in $group; do
		case $g in
		build) packages+=("${build[@]}") ;;
		demo) packages+=("${demo[@]}") ;;
		test) packages+=("${test[@]}") ;;
		*) sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 2 ;;
		esac
	done
done
go_packages=(golang-1.23-go golang-1.23-src)
go_minor=23

root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

missing=()
for p in "${packages[@]}"; do installed "$p" || missing+=("$p"); done
if [ ${#missing[@]} -gt 0 ]; then
	echo "deps: installing ${missing[*]}"
	root apt-get update -qq
	# policy-rc.d: a package must not start its services on this host.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' | root tee $policy >/dev/null
		root chmod 755 $policy
		trap 'root rm -f /usr/sbin/policy-rc.d' EXIT
	fi
	root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# go_ok GO: is this a Go of at least 1.$go_minor?
go_ok() {
	local v
	v=$("$1" env GOVERSION 2>/dev/null) || return 1
	v=${v#go1.}
	[ "${v%%[!0-9]*}" -ge $go_minor ] 2>/dev/null
}

if ! go_ok go && ! go_ok /usr/lib/go-1.$go_minor/bin/go; then
	. /etc/os-release
	lists=$(mktemp -d)
	trap 'rm -rf "$lists"; [ -z "${policy:-}" ] || root rm -f "$policy"' EXIT
	mkdir -p "$lists/lists/partial"
	# The mirror is the one the host itself uses.
	mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" 2>/dev/null | head -n 1)
	if [ -z "$mirror" ]; then
		echo "deps: no Go 1.$go_minor here, and the apt sources name no mirror of $VERSION_CODENAME to take it from" >&2
		exit 1
	fi
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $VERSION_CODENAME-backports main" >"$lists/sources.list"
	chmod -R a+rX "$lists"
	opts=(-o Dir::Etc::sourcelist="$lists/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$lists/lists")
	root apt-get "${opts[@]}" update -qq
	echo "deps: installing ${go_packages[*]} from $VERSION_CODENAME-backports"
	root env DEBIAN_FRONTEND=noninteractive apt-get "${opts[@]}" install -y -qq --no-install-recommends "${go_packages[@]}" >/dev/null
fi
