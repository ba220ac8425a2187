#!/usr/bin/env bash
# Compares two runs of benchmarks.
#
#   compare.sh BASELINE NEW
#
# First the ratio of the median times, NEW / BASELINE, of each benchmark that both have.
# "relative" is that ratio against the geometric mean of all: how fast the two machines are
# cancels out in it, so that a benchmark which got slower shows also on another machine.
# Then benchstat's own tables, with the spread, for who runs both on one machine.
#
# It tells and judges nothing: times on a shared machine are no ground to fail.
set -euo pipefail
GO=${GO:-go}
BENCHSTAT=golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

for file; do
	echo "$file: $(sed -n 's/^cpu: //p' "$file" | sort -u | paste -sd ';'), $(grep -c '^Benchmark' "$file") results"
done
awk '
	function median(all, n,    i, j, t, v) {
		split(all, v, " ")
		for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j - 1] + 0 > v[j] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
		return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
	}
	FNR == 1 { file++ }
	$1 == "pkg:" { pkg = $2; sub(/.*\/internal\//, "", pkg) }
	/^Benchmark/ && $4 == "ns/op" {
		name = $1; sub(/-[0-9]+$/, "", name); sub(/^Benchmark/, "", name); key = pkg " " name
		if (!(key in seen)) { seen[key] = 1; order[++n] = key }
		times[file, key] = times[file, key] " " $3; count[file, key]++
	}
	END {
		for (i = 1; i <= n; i++) {
			key = order[i]
			if (count[1, key] && count[2, key]) {
				ratio[key] = median(times[2, key], count[2, key]) / median(times[1, key], count[1, key])
				sum += log(ratio[key]); both++
			}
		}
		if (!both) { print "no benchmark is in both"; exit }
		mean = exp(sum / both)
		printf "\n%8s %9s  benchmark\n", "ratio", "relative"
		for (i = 1; i <= n; i++) {
			key = order[i]
			if (key in ratio) printf "%8.2f %9.2f  %s\n", ratio[key], ratio[key] / mean, key
			else printf "%8s %9s  %s (%s)\n", "-", "-", key, count[1, key] ? "only in the baseline" : "new"
		}
		printf "%8.2f            geometric mean of %d\n\n", mean, both
	}' "$1" "$2"
"$GO" run "$BENCHSTAT" -ignore cpu "$1" "$2" || echo "compare.sh: benchstat cannot be run here (it comes through the module proxy)"
