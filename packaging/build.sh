#!/usr/bin/env bash
# Makes the Debian packages vmav and vmav-dkms of what make build has built.
#
#   build.sh [VERSION]
#
# They go to build/packages. VERSION is the Debian version; without it it is made of the
# newest tag or, where there is none, of the commit and its time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=build/packages stage=build/packages/stage tree=build/packages/stage/vmav

debian_version() {
	local v time dirty=
	[ -z "$(git status --porcelain --untracked-files=no)" ] || dirty=+dirty
	if v=$(git describe --tags --match 'v[0-9]*' 2>/dev/null); then
		v=${v#v}
		v=${v/-/+} # commits since the tag
		echo "${v//-/.}$dirty"
	else
		time=$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d.%H%M%S)
		echo "0~git$time.$(git rev-parse --short HEAD)$dirty"
	fi
}
version=${1:-$(debian_version)-1}
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

rm -rf "$stage"
mkdir -p "$tree"
cp -a packaging/debian "$tree/debian"
cat >"$tree/debian/changelog" <<END
vmav ($version) unstable; urgency=medium

  * Changes are in changelog.gz beside this file.

 -- vmav developers <vmav@vmav.dev>  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
END
# What the packages are made of, and nothing else of the tree.
{
	git ls-files -z CHANGELOG.md README.md docs packaging kernel/kvm-memhook
	printf 'bin/vmav\0'
} | tar -c --null -T - | tar -x -C "$tree"
bin/vmav man >"$stage/commands"
sed -e "/^\.\\\\\" @COMMANDS@\$/ { r $stage/commands
d }" packaging/man/vmav.1.in >"$tree/packaging/man/vmav.1"

(cd "$tree" && dpkg-buildpackage --build=binary --no-sign >../log 2>&1) || {
	tail -n 40 "$stage/log" >&2
	echo "build.sh: dpkg-buildpackage failed; the log is $stage/log" >&2
	exit 1
}
rm -f "$out"/*.deb
mv "$stage"/*.deb "$out"
rm -rf "$tree"
ls "$out"/*.deb
