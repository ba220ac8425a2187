#!/usr/bin/env bash
# Runs a command in the lab with the module loaded, and if asked to with a libvirt, and
# with the NT test guest running as a KVM domain. One boot of the lab each time.
#
#   run-module.sh [-m MIB] [-t SECONDS] [-s SECONDS] [-o DIR] [-l] [-g 'NTGUEST OPTIONS'] SERIES COMMAND [ARG...]
#
#   -l            with a libvirt at qemu:///session
#   -g            with the guest too (with-domain.sh)
#   -m -t -s -o   as for run.sh
#
# The module is built first if it is older than its source; bin/ must be there
# (make build). The command runs in the current directory, as root. Exit: as run.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../../.." && pwd)

lab=() around=()
while getopts m:t:s:o:lg: f; do
	case $f in
	l) around=("$top/testdata/with-libvirt.sh") ;;
	g) around=("$top/testdata/with-libvirt.sh" "$here/with-domain.sh" "$OPTARG") ;;
	m | t | s | o) lab+=("-$f" "$OPTARG") ;;
	*) exit 99 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 99; }
series=$1
shift

module=build/kvm-memhook/$series/kvm_memhook.ko
make -s -C "$top" -f kernel/kvm-memhook/module.mk "$module" >&2 || exit 99
exec "$here/run.sh" "${lab[@]}" "$series" "$(printf '%q ' "$here/with-module.sh" "$top/$module" "${around[@]}" "$@")"
