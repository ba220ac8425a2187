#!/usr/bin/env bash
# Boots a stock Debian kernel under QEMU's emulation of AMD SVM, on this host's
# own file system (read-only, with an overlay in memory), and runs a command
# there, in the current directory. Its output is shown, its exit status is this
# script's. What the kernel complained of fails the run whatever the command
# says.
#
#   run.sh [-m MIB] [-t SECONDS] [-s SECONDS] [-o DIR] [-r ROOT] SERIES COMMAND...
#
#   -m   memory of the first level, MiB (3072)
#   -t   give up after so many seconds (900)
#   -s   give up when nothing was said for so many seconds: the lab hangs
#   -o   directory for the console log and what the command leaves in
#        /lab/out (a temporary one)
#   -r   another root, a Debian with the kernel's modules: its own systemd boots it, and the
#        command runs when all is up, in /
#
# LAB_QEMU, LAB_THREAD (single or multi) and LAB_SMP choose another emulation, and
# LAB_APPEND adds to the kernel's command line. With LAB_AGAIN a lab that comes to no
# result is booted once more, unless the kernel complained. VMAV_* and LAB_* variables cross over.
#
# Exit: the command's own status; 97 the kernel complained; 98 no result (the
# lab hung, crashed or never came up); 99 the lab could not be set up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

mem=3072 limit=900 silence= out= root=/
while getopts m:t:s:o:r: f; do
	case $f in
	m) mem=$OPTARG ;;
	t) limit=$OPTARG ;;
	s) silence=$OPTARG ;;
	o) out=$OPTARG ;;
	r) root=$OPTARG ;;
	*) exit 99 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 99; }
series=$1
shift

# The lab reads this host's files as root would: libvirt's settings are not for all to read.
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
setup_failed() { echo "run.sh: $*" >&2; exit 99; }

"$here/kernels.sh" fetch "$series" || setup_failed "no kernel $series"
eval "$("$here/kernels.sh" env "$series")"

work=$(mktemp -d)
cleanup() {
	[ -z "${qemu:-}" ] || "${as_root[@]}" kill "$qemu" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
out=${out:-$work/out}
mkdir -p "$out"
out=$(cd "$out" && pwd)

workdir=$PWD init=tini modules=$MODULES
[ "$root" = / ] || workdir=/ init=systemd modules= # it has its own
printf 'RELEASE=%q MODULES=%q WORKDIR=%q INIT=%q\nexport RELEASE WORKDIR\n' "$RELEASE" "$modules" "$workdir" "$init" >"$work/lab.conf"
"$here/initramfs.sh" -f "$work/lab.conf" "$work/initrd" "$here/init.sh" "$MODULES" virtio_pci 9pnet_virtio 9p overlay ||
	setup_failed "cannot make the initramfs"

printf '%s\n' "$*" >"$out/command"
export LAB_VMLINUZ=$VMLINUZ
# Only what is asked for crosses over: VMAV_* and LAB_* variables.
env | grep -E '^(VMAV|LAB)_[A-Z_]*=' | while IFS='=' read -r k v; do printf 'export %s=%q\n' "$k" "$v"; done >"$out/env" || true

# The emulator has a thread for each processor of the lab, and one processor of the host for
# all of them: which one is for a lock to say, so that no two labs have the same as far as
# there are enough. What happens otherwise is in docs/MODULE.md.
locks=${VMAV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmav}/processors
mkdir -p "$locks" 2>/dev/null || true
cpu= cpus=()
for c in $(seq 0 $(($(nproc --all) - 1))); do
	taskset -c "$c" true 2>/dev/null || continue # not for us
	cpus+=("$c")
	{ exec 7>"$locks/$c"; } 2>/dev/null || continue # it is root's
	! flock -n 7 || { cpu=$c; break; }
done
cpu=${cpu:-${cpus[RANDOM % ${#cpus[@]}]}}

# listen: ends a lab that says nothing for too long.
listen() {
	local said='' now quiet=0
	while sleep 5 && [ -d "/proc/$qemu" ]; do
		now=$(stat -c %s "$out/output" "$out/console.log" 2>/dev/null || true)
		quiet=$((quiet + 5))
		[ "$now" = "$said" ] || quiet=0
		said=$now
		[ "$quiet" -lt "$silence" ] || {
			echo "run.sh: the lab has said nothing for $silence s, and is ended" >&2
			"${as_root[@]}" kill "$qemu" 2>/dev/null || true
			return
		}
	done
}

# boot: one run of the lab.
boot() {
	rm -f "$out/status" "$out/console.log" "$out/dmesg"
	: >"$out/output"
	# TCG always: where /dev/kvm exists here it may be a paravirtual variant.
	# Emulated time runs slowly on a loaded host, hence the long stall limits.
	"${as_root[@]}" nice -n 5 taskset -c "$cpu" timeout -k 10 "$limit" ${LAB_QEMU:-qemu-system-x86_64} \
		-accel tcg,thread=${LAB_THREAD:-multi} -cpu max -smp ${LAB_SMP:-2} -m "$mem" -no-reboot -nodefaults \
		-display none -monitor none \
		-serial file:"$out/console.log" -serial file:"$out/output" \
		-kernel "$VMLINUZ" -initrd "$work/initrd" \
		-append "console=ttyS0 ignore_loglevel panic=-1 oops=panic rcupdate.rcu_cpu_stall_timeout=180 watchdog_thresh=60 audit=0 ${LAB_APPEND:-}" \
		-virtfs local,path="$root",mount_tag=host,security_model=none,readonly=on,multidevs=remap \
		-virtfs local,path="$out",mount_tag=out,security_model=none \
		-device virtio-rng-pci </dev/null 7>&- &
	qemu=$!
	tail -n +1 -s 0.2 -f --pid="$qemu" "$out/output" &
	local shown=$! ended=0
	[ -z "$silence" ] || listen &
	wait "$qemu" || ended=$?
	wait $shown || true
	qemu=
	[ $ended != 124 ] || echo "run.sh: no result after $limit s" >&2
}

# What a kernel prints at boot about RCU is not a complaint.
complaints='BUG:|WARNING:|Oops|Call Trace|general protection fault|Unable to handle|KASAN:|UBSAN:|lockdep|detected (expedited )?stalls|self-detected stall|suspicious RCU|possible (recursive|circular) locking|blocked for more than|refcount_t:'
complained() {
	grep -aE "$complaints" "$out/console.log" | grep -avE 'RCU lockdep checking|ommand line:' >"$out/complaints"
}

# starved: is all that the kernel complains of a processor that was in a guest and got no
# time for minutes? The emulation was seen to do that to 6.12 (docs/MODULE.md). What the
# module could do wrong in its own code, a lock or a loop, would show its name.
starved() {
	! grep -avE 'detected (expedited )?stalls|self-detected stall|soft lockup|Call Trace' "$out/complaints" >/dev/null &&
		grep -aqE 'RIP: .*(svm_vcpu_run|kvm_arch_vcpu_ioctl_run|vcpu_enter_guest)' "$out/console.log" &&
		! grep -aE ' (RIP: [0-9a-f]*:)?\??\s*kmh_[a-z_]+\+' "$out/console.log" >/dev/null
}

boot
if complained && starved; then
	cp "$out/console.log" "$out/console-starved.log"
	echo "run.sh: the emulation starved a processor; once more. That console is $out/console-starved.log" >&2
	boot
fi
if [ -n "${LAB_AGAIN:-}" ] && ! complained && [ ! -s "$out/status" ]; then
	cp "$out/console.log" "$out/console-failed.log"
	echo "run.sh: no result, and nothing in the kernel's log; once more. That console is $out/console-failed.log" >&2
	boot
fi
if complained; then
	echo "run.sh: the kernel complained:" >&2
	head -n 20 "$out/complaints" >&2
	grep -aE -A 40 -m 1 "$complaints" "$out/console.log" >&2 || true
	exit 97
fi
if [ ! -s "$out/status" ]; then
	echo "run.sh: no result; the console ends with" >&2
	tail -n 20 "$out/console.log" >&2
	exit 98
fi
exit "$(cat "$out/status")"
