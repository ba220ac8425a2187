#!/usr/bin/env bash
# Runs make targets as the steps of one tier of tests, and prints a table of what each took.
#
#   steps.sh [-b SECONDS] TITLE LANE...
#
# A lane is a list of targets, which run one after another; lanes run side by side. What a
# step of the first lane says is shown while it says it, and what one of another lane says
# when it is done. All of it is in build/steps/TITLE/TARGET.log. A target that fails ends
# its lane; the others go on, so that one run shows all that fails.
#
# With -b the whole has that many seconds: TARGET:ESTIMATE is left out when less than its
# estimate is left, and the table says so. A lane goes on with the next one that fits.
#
# Exit: 0 if no step has failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
make=${MAKE:-make}

budget=
while getopts b: f; do
	case $f in
	b) budget=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 2; }
title=$1
shift
dir=build/steps/$title
rm -rf "$dir"
mkdir -p "$dir"

say() { printf '== %s: %s\n' "$title" "$*"; }

# step LANE TARGET: runs it, in a process group of its own, and notes what it took.
step() {
	local log=$dir/$2.log begin=$SECONDS status=0 word=ok
	say "$2"
	# Behind & a shell has its commands ignore these signals.
	setsid env --default-signal=INT,QUIT "$make" --no-print-directory "$2" >"$log" 2>&1 </dev/null &
	local pid=$!
	trap 'kill -TERM -- -'$pid' 2>/dev/null; wait '$pid'; exit 143' TERM
	if [ "$1" = 1 ]; then tail -n +1 -s 0.2 --pid=$pid -f "$log" & fi
	wait $pid || status=$?
	wait # for the rest of its output
	trap - TERM
	[ $status = 0 ] || word="FAILED ($status)"
	printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$((SECONDS - begin))" "$word" >>"$dir/took"
	[ "$1" = 1 ] || { flock 9 && cat "$log"; } 9>"$dir/lock" # one at a time
	say "$2 took $((SECONDS - begin)) s: $word"
	return $status
}

# lane NUMBER STEP...
lane() {
	local n=$1 s target estimate
	shift
	for s in "$@"; do
		target=${s%%:*} estimate=0
		[ "$s" = "$target" ] || estimate=${s#*:}
		if [ -n "${failed:-}" ]; then
			printf '%s\t%s\t-\tnot run\n' "$n" "$target" >>"$dir/took"
		elif [ -n "$budget" ] && [ $((SECONDS + estimate)) -gt "$budget" ]; then
			printf '%s\t%s\t-\tleft out: takes some %s s\n' "$n" "$target" "$estimate" >>"$dir/took"
		else
			step "$n" "$target" || failed=yes
		fi
	done
	[ -z "${failed:-}" ]
}

lanes=()
trap 'kill -TERM "${lanes[@]}" 2>/dev/null; wait; exit 130' INT TERM HUP
n=0
for l in "$@"; do
	n=$((n + 1))
	read -ra steps <<<"$l"
	lane $n "${steps[@]}" &
	lanes+=($!)
done
status=0
for l in "${lanes[@]}"; do wait "$l" || status=1; done

printf '\n%-28s %7s  %s\n' "make $title" "seconds" ""
sort -s -t "$(printf '\t')" -k 1,1n "$dir/took" | while IFS=$'\t' read -r n target took word; do
	printf '  %-26s %7s  %s\n' "$target" "$took" "$word"
done
printf '  %-26s %7s  %s\n' "in all" "$SECONDS" "$([ $status = 0 ] && echo ok || echo FAILED)"
exit $status
