#!/usr/bin/env bash
# Runs in the Debian of packaging/root.sh, not booted: looks at what is in the packages in
# /test/new, without installing them. /test/contents.txt names what has to be there and
# how, and /test/module what git has of the module.
set -euo pipefail
export LC_ALL=C.UTF-8
here=$(dirname "${BASH_SOURCE[0]}")
step() { echo "== $* ($SECONDS s)"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree files=$work/files
mkdir "$tree"
for deb in "$here"/new/*.deb; do dpkg-deb -x "$deb" "$tree"; done

step "lintian"
lintian --allow-root --fail-on error,warning "$here"/new/*.deb

step "files, modes, owners"
for deb in "$here"/new/*.deb; do
	name=$(dpkg-deb -f "$deb" Package)
	# Documentation and sources are many, and all of one kind.
	dpkg-deb -c "$deb" | awk -v p="$name" '$1 !~ /^d/ { sub(/^\./, "", $6); print p, $1, $2, $6 }'
done | sort >"$files"
grep -E ' /usr/(share/doc|src)/' "$files" | grep -v ' -rw-r--r-- root/root ' && fail "these are not for all to read and root's to write"
grep -vE ' /usr/(share/doc|src)/' "$files" | diff "$here/contents.txt" - || fail "the files are not those of packaging/test/contents.txt"
echo "$(wc -l <"$files") files"

step "the module's source"
grep -vE '^(lab|selftest)/' "$here/module" | grep -E '(\.[chS]|\.sh|/Kbuild|^Kbuild|^dkms.conf)$' | sort >"$work/source"
(cd "$tree"/usr/src/kvm-memhook-* && find . -type f -printf '%P\n') | sort | diff "$work/source" - || fail "the source is not what git has of it"
echo "$(wc -l <"$work/source") files"

step "manual pages"
for page in "$tree"/usr/share/man/man*/*.gz; do
	out=$(man --warnings -l "$page" 2>&1 >/dev/null)
	[ -z "$out" ] || fail "man --warnings: $page: $out"
	zcat "$page" | mandoc -Tlint -W warning || fail "mandoc -Tlint: $page"
	echo "${page##*/}"
done

step "the program, its settings, its completion"
"$tree/usr/bin/vmav" --version
VMAV_CONFIG=$tree/etc/vmav/vmav.toml "$tree/usr/bin/vmav" policy check "$tree/etc/vmav/policy.toml"
bash -n "$tree/usr/share/bash-completion/completions/vmav.bash"
echo "== done ($SECONDS s)"
