#!/usr/bin/env bash
# Makes of the packages in a directory those of a previous build: an older version, whose
# policy and whose module are other ones.
#
#   previous.sh FROM TO
set -euo pipefail
rm -rf "$2"
mkdir -p "$2"
tree=
trap 'rm -rf "$tree"' EXIT
for deb in "$1"/*.deb; do
	tree=$(mktemp -d)
	dpkg-deb -R "$deb" "$tree"
	sed -i 's/^Version: .*/Version: 0~0previous-1/' "$tree/DEBIAN/control"
	[ ! -e "$tree/etc/vmav/policy.toml" ] || echo '# of the previous build' >>"$tree/etc/vmav/policy.toml"
	for f in "$tree"/usr/src/kvm-memhook-*/main.c; do
		[ ! -e "$f" ] || echo 'MODULE_INFO(build, "previous");' >>"$f"
	done
	(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums)
	dpkg-deb --root-owner-group -Zgzip -z1 -b "$tree" "$2" >/dev/null
	rm -rf "$tree"
done
