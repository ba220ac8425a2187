#!/usr/bin/env bash
# Fetches PE files that Debian's installed packages do not have, for the rebuild
# tests: made by Microsoft's tools, .NET, signed, packed. Nothing is installed.
#
#   testdata/pecorpus/fetch.sh [DIR]      default: build/pecorpus
#
# Debian packages are downloaded and unpacked by name, npm packages through npm,
# UPX from Debian's backports through apt lists of our own, and an installer is made
# with NSIS. A folder that this script has filled before is left as it is. What cannot
# be had is said and left out; the exit status is 1 then.
set -euo pipefail

dest=$(realpath -m "${1:-build/pecorpus}")
debs=(libmono-corlib4.5-dll libmono-system4.0-cil libmono-system-core4.0-cil libmono-system-xml4.0-cil
	nsis nsis-common shim-signed shim-unsigned systemd-boot-efi python3-distlib)
npms=(rcedit@4.0.1 7zip-bin@5.2.0 node-notifier@10.0.1 node-pty@1.1.0 @rollup/rollup-win32-x64-msvc@4.40.0
	@esbuild/win32-x64@0.25.0 @esbuild/win32-ia32@0.25.0)
# Small programs to pack, from packages that the tests need anyway.
pack=(/usr/lib/x86_64-linux-gnu/wine/x86_64-windows/{notepad.exe,cmd.exe,regedit.exe,winver.exe}
	/usr/i686-w64-mingw32/lib/zlib1.dll /usr/x86_64-w64-mingw32/lib/zlib1.dll)

stamp=$dest/.complete
version=$(sha256sum <"$(realpath "$0")")
[ "$(cat "$stamp" 2>/dev/null)" = "$version" ] && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
missing=0
lost() { echo "pecorpus: $1 is left out" >&2; missing=1; }

mkdir -p "$dest" "$work/deb" "$work/npm"
cd "$work/deb"
for p in "${debs[@]}"; do
	apt-get download -qq "$p" 2>/dev/null >&2 || { lost "Debian package $p"; continue; }
	mkdir -p "x/$p" && dpkg -x "$p"_*.deb "x/$p"
done
cd "$work/npm"
for p in "${npms[@]}"; do
	name=$(npm pack --silent "$p" 2>/dev/null) || { lost "npm package $p"; continue; }
	mkdir -p "x/${name%.tgz}" && tar -xzf "$name" -C "x/${name%.tgz}"
done

# keep FILE NAME: PE files only
keep() { if cmp -s -n 2 "$1" <(printf MZ); then cp -f "$1" "$dest/$2"; fi; }
for d in "$work"/deb/x/* "$work"/npm/x/*; do
	[ -d "$d" ] || continue
	find "$d" -type f -size +1k | while read -r f; do keep "$f" "$(basename "$d")-$(echo "${f#"$d"/}" | tr / _)"; done
done

# An installer: a stub with what it installs behind its last section.
if makensis=$work/deb/x/nsis/usr/bin/makensis && [ -x "$makensis" ]; then
	printf 'OutFile "%s/nsis-installer.exe"\nName "corpus"\nSection\nSetOutPath "$TEMP"\nFile "%s"\nSectionEnd\n' \
		"$dest" /usr/i686-w64-mingw32/lib/zlib1.dll >"$work/installer.nsi"
	NSISDIR=$work/deb/x/nsis-common/usr/share/nsis "$makensis" -V1 "$work/installer.nsi" >/dev/null 2>&1 || lost "the NSIS installer"
fi

upx=$(command -v upx || true)
if [ -z "$upx" ]; then
	. /etc/os-release
	l=$work/apt
	mkdir -p "$l/lists/partial" "$l/upx"
	# The mirror is the one the host itself uses.
	mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" 2>/dev/null | head -n 1)
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $VERSION_CODENAME-backports main" >"$l/sources.list"
	opt=(-o Dir::Etc::SourceList="$l/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$l/lists"
		-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User="$(id -un)")
	if (cd "$l" && apt-get "${opt[@]}" update -qq && apt-get "${opt[@]}" download -qq upx-ucl) >/dev/null 2>&1; then
		dpkg -x "$l"/upx-ucl_*.deb "$l/upx"
		upx=$l/upx/usr/bin/upx-ucl
	fi
fi
if [ -n "$upx" ]; then
	for f in "${pack[@]}"; do
		for level in -1 --best; do
			case $level$f in -1*.dll) continue ;; esac
			out=$dest/upx$level-$(echo "${f#/usr/}" | tr / _)
			rm -f "$out"
			"$upx" -qq --force $level -o "$out" "$f" >/dev/null 2>&1 || lost "UPX of $f"
		done
	done
else
	lost "UPX"
fi
echo "pecorpus: $(find "$dest" -type f | wc -l) files in $dest"
[ $missing = 1 ] || echo "$version" >"$stamp"
exit $missing
