#!/bin/busybox sh
# /init of the lab's first level. It loads what the root file system needs,
# switches to the host's own file system (read-only 9p under a tmpfs overlay)
# and runs /lab/out/command there. The exit status goes to /lab/out/status.
/bin/busybox mkdir -p /proc /sys /dev /host /rw /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

die() { echo "lab init: $*" >/dev/kmsg; poweroff -f; }

while read -r m; do insmod "/modules/$m" || die "cannot load $m"; done </modules/order

. /lab.conf # RELEASE, MODULES, WORKDIR
opts=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o ro,cache=loose,$opts host /host || die "no root file system over 9p"
mount -t tmpfs -o size=75% tmpfs /rw && mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new || die "no overlay"

for d in proc sys dev; do mkdir -p /new/$d; mount --move /$d /new/$d; done
mkdir -p /new/dev/pts /new/dev/shm /new/run /new/lab/out "/new/lib/modules/$RELEASE"
mount -t devpts -o gid=5,mode=620 devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t tmpfs tmpfs /new/run
mount -t 9p -o cache=none,$opts out /new/lab/out || die "no output directory over 9p"
mount --bind "/new$MODULES" "/new/lib/modules/$RELEASE" || die "no modules of $RELEASE"
ip link set lo up

cat >/new/lab/run <<'S'
cd "$WORKDIR" && . /lab/out/env
bash /lab/out/command </dev/null 2>&1 | cat >/dev/ttyS1 # no terminal
echo ${PIPESTATUS[0]} >/lab/out/status
dmesg >/lab/out/dmesg
sync
busybox poweroff -f
S
stty -F /new/dev/ttyS1 115200 -opost 2>/dev/null
export WORKDIR PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# tini reaps what the daemons leave behind.
exec /bin/busybox switch_root /new /usr/bin/tini -- /bin/bash /lab/run
