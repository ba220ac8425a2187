#!/usr/bin/env bash
# Runs a command in the lab with the module loaded and a libvirt there, and with -g
# with the NT test guest running as a KVM domain. One boot of the lab each; what the
# command sees is said in with-module.sh.
#
#   run-module.sh [-m MIB] [-t SECONDS] [-o DIR] [-g 'NTGUEST OPTIONS'] SERIES COMMAND [ARG...]
#
#   -g            as for with-module.sh
#   -m -t -o      as for run.sh
#
# The module is built first if it is older than its source; bin/ must be there
# (make build). The command runs in the current directory, as root. Exit: as run.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../../.." && pwd)

lab=() guest=()
while getopts m:t:o:g: f; do
	case $f in
	g) guest=(-g "$OPTARG") ;;
	m | t | o) lab+=("-$f" "$OPTARG") ;;
	*) exit 99 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 99; }
series=$1
shift

module=build/kvm-memhook/$series/kvm_memhook.ko
make -s -C "$top" -f kernel/kvm-memhook/module.mk "$module" >&2 || exit 99
exec "$here/run.sh" "${lab[@]}" "$series" "$(printf '%q ' "$here/with-module.sh" "${guest[@]}" "$top/$module" "$@")"
