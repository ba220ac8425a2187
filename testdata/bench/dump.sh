#!/usr/bin/env bash
# Rebuilding beside another tool's dump of the same modules out of the same image:
#
#   testdata/bench/dump.sh IMAGE
#
# Volatility 3 (VOLATILITY3 and VOLATILITY3_SYMBOLS, docs/TESTING.md) writes every module of
# all processes in one run and leaves them as they are mapped; vmav is started anew for each
# process, undoes what the loader did, and writes a record and hashes beside each file. The
# times are of the processor, which other work on the machine disturbs least; the second
# figure of each is less what listing the same modules takes, start included.
set -euo pipefail
image=$1
vmav=$(dirname "$0")/../../bin/vmav
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

TIMEFORMAT='%U + %S'
seconds() { { time "$@" >"$work/out" 2>"$work/err" || true; } 2>&1 | bc; }
each() { local pid; for pid in $pids; do "${@//PID/$pid}" || [ $? = 2 ]; done; }
volatility() { /usr/bin/python3 "$VOLATILITY3/vol.py" -q -s "$VOLATILITY3_SYMBOLS" -o "$work/theirs" -f "$image" "$@"; }

pids=$("$vmav" ps -a "$image" --format csv | awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "pid") at = i; next } { print $at }')
volatility windows.dlllist >/dev/null 2>&1 || mkdir -p "$work/theirs" # fills its symbol cache
for _ in 1 2 3; do
	rm -rf "$work/ours" "$work/theirs"
	mkdir -p "$work/ours" "$work/theirs"
	theirs_list=$(seconds volatility windows.dlllist)
	theirs=$(seconds volatility windows.dlllist --dump)
	ours_list=$(seconds each "$vmav" modules -a "$image" PID)
	ours=$(seconds each "$vmav" dump -a "$image" PID --all -o "$work/ours/PID")
	files() { find "$1" -type f ! -name '*.json' | wc -l; }
	size() { find "$1" -type f ! -name '*.json' -printf '%s\n' | awk '{ s += $1 } END { printf "%.1f MB", s / 1e6 }'; }
	ratio() { echo "scale=2; ($1) / ($2)" | bc; }
	echo "vmav dump --all: $(files "$work/ours") files, $(size "$work/ours"), $ours s (less listing $(echo "$ours - $ours_list" | bc));" \
		"Volatility 3 dlllist --dump: $(files "$work/theirs") files, $(size "$work/theirs"), $theirs s (less listing $(echo "$theirs - $theirs_list" | bc));" \
		"ratio $(ratio "$ours" "$theirs") ($(ratio "$ours - $ours_list" "$theirs - $theirs_list"))"
done
