#!/usr/bin/env bash
# Builds a kernel for the lab that looks after itself: lockdep, PROVE_RCU, KASAN,
# kmemleak, poisoned slabs. The source is Debian's linux-source package, the
# configuration is the smallest that runs the lab.
#
#   debug-kernel.sh VERSION SUITE MIRROR DIR     e.g. 6.1 bookworm
#
# Leaves in DIR/root what kernels.sh leaves there for a packaged kernel. Runs as
# root; it takes the better part of an hour of one processor.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$1 suite=$2 mirror=$3 dir=$4

mmdebstrap --variant=apt --quiet \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='Acquire::Languages "none"' \
	--include="linux-source-$version,gcc,make,flex,bison,bc,libelf-dev,libssl-dev,xz-utils,cpio,kmod,sparse,python3-minimal" \
	"$suite" "$dir/root" "$mirror"
install -m 644 "$here/debug.config" "$dir/root/debug.config"
cat >"$dir/root/build.sh" <<S
set -eu
mkdir -p /usr/src/linux
tar -xJf /usr/src/linux-source-$version.tar.xz -C /usr/src/linux --strip-components=1
cd /usr/src/linux
make -s tinyconfig
scripts/kconfig/merge_config.sh -m .config /debug.config >/dev/null
make -s olddefconfig
# An option that cannot be had is dropped in silence: here it is an error.
missing=0
while read -r want; do
	case \$want in '' | '#'*) continue ;; esac
	grep -qxF "\$want" .config || { echo "debug-kernel.sh: not in the configuration: \$want"; missing=1; }
done </debug.config
[ \$missing = 0 ]
make -s -j"\$(nproc)" bzImage modules
release=\$(make -s kernelrelease)
make -s modules_install INSTALL_MOD_PATH=/kernel
install -D -m 644 arch/x86/boot/bzImage "/kernel/boot/vmlinuz-\$release"
rm -f "/kernel/lib/modules/\$release/build" "/kernel/lib/modules/\$release/source"
mkdir -p "/lib/modules/\$release"
ln -sfn /usr/src/linux "/lib/modules/\$release/build"
S
unshare -m sh -c 'mount -t proc proc "$1/proc" && exec nice -n 10 chroot "$1" sh /build.sh' sh "$dir/root"
