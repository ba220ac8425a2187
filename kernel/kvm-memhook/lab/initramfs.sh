#!/usr/bin/env bash
# Makes an initramfs of busybox, an /init, and kernel modules with what they depend on.
# They lie in /modules; /modules/order names them in the order to load them in.
#
#   initramfs.sh [-f FILE]... OUT INIT MODULES [MODULE...]
#
#   -f        a file more, put into the root
#   MODULES   directory of a kernel's modules: .../lib/modules/RELEASE
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # modprobe, for a user whose PATH lacks it

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/bin" "$tree/modules"
while getopts f: f; do
	case $f in
	f) cp "$OPTARG" "$tree/" ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 3 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 2; }
out=$1 init=$2 modules=$3
shift 3

cp "$(command -v busybox)" "$tree/bin/busybox"
install -m 755 "$init" "$tree/init"
: >"$tree/modules/order"
for m in "$@"; do
	modprobe --show-depends -d "${modules%/lib/modules/*}/" -S "$(basename "$modules")" "$m" ||
		{ echo "initramfs.sh: no module $m in $modules" >&2; exit 1; }
done >"$tree/depends"
awk '$1 == "insmod" && !seen[$2]++ { print $2 }' "$tree/depends" | while read -r f; do
	m=$(basename "$f")
	case $m in
	*.xz) m=${m%.xz}; xz -dc "$f" >"$tree/modules/$m" ;;
	*.zst) m=${m%.zst}; zstd -qdc "$f" >"$tree/modules/$m" ;;
	*) cp "$f" "$tree/modules/$m" ;;
	esac
	echo "$m" >>"$tree/modules/order"
done
rm "$tree/depends"
(cd "$tree" && find . | cpio -o -H newc --quiet) >"$out"
