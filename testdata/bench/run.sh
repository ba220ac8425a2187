#!/usr/bin/env bash
# The project's benchmark: what docs/PERFORMANCE.md quotes.
#
# With VOLATILITY3 and VOLATILITY3_SYMBOLS set (docs/TESTING.md), `vmav ps` on a 4 GiB
# image is timed beside Volatility 3's pslist on the same file, and `vmav dump --all` beside
# its dlllist --dump.
set -euo pipefail
cd "$(dirname "$0")/../.."
GO=${GO:-go}

"$GO" test ./internal/e2e/live -run '^$' -bench . -benchtime "${BENCHTIME:-2s}"
"$GO" test ./internal/introspect -run '^$' -bench . -benchtime "${BENCHTIME:-2s}"
"$GO" test ./internal/worker -run '^$' -bench . -benchtime "${BENCHTIME:-2s}"
"$GO" test ./internal/pe -run '^$' -bench Sweep -benchtime "${BENCHTIME:-2s}"
"$GO" test ./internal/sweep -run '^$' -bench EveryModule -benchtime "${BENCHTIME:-2s}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bin/ntguest image --memory 4096 --out "$work/guest.raw"
seconds() { local a b; a=$(date +%s.%N); "$@" >/dev/null; b=$(date +%s.%N); echo "$b - $a" | bc; }
for _ in 1 2 3; do
	ours=$(seconds bin/vmav ps -a "$work/guest.raw")
	line="vmav ps, 4 GiB image: $ours s"
	if [ -n "${VOLATILITY3:-}" ]; then
		theirs=$(seconds /usr/bin/python3 "$VOLATILITY3/vol.py" -q -s "$VOLATILITY3_SYMBOLS" -f "$work/guest.raw" windows.pslist)
		line+="; Volatility 3 pslist: $theirs s; ratio $(echo "scale=3; $ours / $theirs" | bc)"
	fi
	echo "$line"
done
if [ -n "${VOLATILITY3:-}" ]; then
	testdata/bench/dump.sh "$work/guest.raw"
fi
