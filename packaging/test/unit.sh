#!/usr/bin/env bash
# Makes systemd run a command at the end of the boot of a root, and power off after it. What
# it says is in /test/output there, its status in /test/status.
#
#   unit.sh ROOT COMMAND
set -euo pipefail
cat >"$1/etc/systemd/system/vmav-test.service" <<END
[Unit]
Description=test of the packages
After=multi-user.target
[Service]
Type=oneshot
IgnoreSIGPIPE=no
ExecStart=/bin/bash -c '$2 >/test/output 2>&1; echo \$\$? >/test/status'
ExecStopPost=/bin/systemctl --no-block poweroff --force
TimeoutStartSec=infinity
END
mkdir -p "$1/etc/systemd/system/graphical.target.wants"
ln -sf /etc/systemd/system/vmav-test.service "$1/etc/systemd/system/graphical.target.wants/vmav-test.service"
