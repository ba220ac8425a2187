#!/usr/bin/env bash
# Puts a Debian kernel image at build/linux/vmlinuz, for the test domain that is no
# Windows. The package is unpacked there and not installed.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -e build/linux/vmlinuz ] && exit 0
mkdir -p build/linux
cd build/linux
package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1; }
if [ -z "$(package)" ] || ! apt-get -o APT::Sandbox::User=root download -qq "$(package)"; then
	if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
	apt-get -o APT::Sandbox::User=root download -qq "$(package)"
fi
dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x --wildcards './boot/vmlinuz-*'
mv boot/vmlinuz-* vmlinuz
rm -rf boot linux-image-*.deb
