#!/usr/bin/env bash
# Runs inside the lab, under with-module.sh: the module's selftests, and then the Go tests
# with a libvirt, in one boot. Both run, also where the first ones fail.
#
#   tests.sh SELFTEST GO-TEST SECONDS
#
# The emulation below loses an interrupt now and then, and a guest stands still
# (docs/MODULE.md). What fails is therefore run once more by itself, and that is said. What
# the kernel complains of fails the run all the same (run.sh).
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
selftest=$1 gotest=$2 seconds=$3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

echo "== selftests ($SECONDS s)"
"$selftest" 2>&1 | tee "$work/selftest"
if [ "${PIPESTATUS[0]}" != 0 ]; then
	mapfile -t failed < <(sed -n 's/^FAIL *\([^ ]*\).*/\1/p' "$work/selftest")
	if [ ${#failed[@]} = 0 ]; then
		echo "tests.sh: the selftests failed, and named none"
		status=1
	else
		echo "tests.sh: once more: ${failed[*]}"
		"$selftest" "${failed[@]}" || status=1
	fi
fi

go_tests() { (cd "$here/../../../internal/e2e/lab" && "$here/../../../testdata/with-libvirt.sh" "$gotest" -test.v -test.timeout "${seconds}s" -test.run "$1"); }
echo "== Go tests ($SECONDS s)"
go_tests . 2>&1 | tee "$work/go"
ended=${PIPESTATUS[0]}
if [ "$ended" != 0 ]; then
	failed=$(sed -n 's/^--- FAIL: \([^ /]*\).*/\1/p' "$work/go" | paste -sd '|')
	if [ "$ended" != 1 ] || [ -z "$failed" ]; then # they did not come to their end
		echo "tests.sh: the Go tests ended with status $ended"
		status=1
	else
		echo "tests.sh: once more: $failed"
		go_tests "^($failed)\$" || status=1
	fi
fi
echo "== done ($SECONDS s)"
exit $status
