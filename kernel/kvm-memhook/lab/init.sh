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

. /lab.conf # RELEASE, MODULES, WORKDIR, INIT
opts=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o ro,cache=loose,$opts host /host || die "no root file system over 9p"
mount -t tmpfs -o size=75% tmpfs /rw && mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new || die "no overlay"

mkdir -p /new/lab/out
mount -t 9p -o cache=none,$opts out /new/lab/out || die "no output directory over 9p"
cat >/new/lab/run <<'S'
cd "$WORKDIR" && . /lab/out/env
bash /lab/out/command </dev/null 2>&1 | cat >/dev/ttyS1 # no terminal
echo ${PIPESTATUS[0]} >/lab/out/status
dmesg >/lab/out/dmesg
sync
busybox poweroff -f 2>/dev/null
echo o >/proc/sysrq-trigger # a root without busybox
sleep 60
S
stty -F /dev/ttyS1 115200 -opost 2>/dev/null
export WORKDIR RELEASE HOME=/root

if [ "$INIT" = systemd ]; then
	cat >/new/etc/systemd/system/lab.service <<S
[Unit]
After=multi-user.target
[Service]
Type=oneshot
Environment=WORKDIR=$WORKDIR RELEASE=$RELEASE HOME=/root
ExecStart=/bin/bash /lab/run
TimeoutStartSec=infinity
StandardOutput=tty
TTYPath=/dev/ttyS1
S
	mkdir -p /new/etc/systemd/system/graphical.target.wants
	ln -s ../lab.service /new/etc/systemd/system/graphical.target.wants/lab.service
	umount /proc /sys
	mount --move /dev /new/dev
	exec /bin/busybox switch_root /new /lib/systemd/systemd
fi

for d in proc sys dev; do mkdir -p /new/$d; mount --move /$d /new/$d; done
mkdir -p /new/dev/pts /new/dev/shm /new/run "/new/lib/modules/$RELEASE"
mount -t devpts -o gid=5,mode=620 devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t tmpfs tmpfs /new/run
mount --bind "/new$MODULES" "/new/lib/modules/$RELEASE" || die "no modules of $RELEASE"
ip link set lo up
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# tini reaps what the daemons leave behind.
exec /bin/busybox switch_root /new /usr/bin/tini -- /bin/bash /lab/run
