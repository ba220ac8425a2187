#!/usr/bin/env bash
# The project's benchmarks: what docs/PERFORMANCE.md quotes.
#
# Every benchmark of the tree but the lab's (make bench-kvm) runs BENCHCOUNT times. The
# output, as benchstat reads it, goes to build/bench/bench.txt, and compare.sh holds it
# against baseline.txt.
#
# With VOLATILITY3 and VOLATILITY3_SYMBOLS set (docs/TESTING.md), `vmav ps` on a 4 GiB
# image is timed beside Volatility 3's pslist on the same file, and `vmav dump --all` beside
# its dlllist --dump.
set -euo pipefail
cd "$(dirname "$0")/../.."
GO=${GO:-go}
out=build/bench/bench.txt

mapfile -t packages < <(grep -rl '^func Benchmark' --include='*_test.go' internal | xargs -n 1 dirname | grep -v '/lab$' | sort -u)
mkdir -p "$(dirname "$out")"
"$GO" test "${packages[@]/#/./}" -p 1 -run '^$' -bench . -benchtime "${BENCHTIME:-0.5s}" -count "${BENCHCOUNT:-6}" -timeout 2h | tee "$out"
testdata/bench/compare.sh testdata/bench/baseline.txt "$out"

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
