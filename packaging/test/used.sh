# Sourced by inside.sh with the packages installed: an operator writes a policy, a domain is
# started, and nothing else is done. The service has to find the infected process that the
# test guest starts with, and one that starts in it later. With the module it has to end
# them. Record, evidence and metrics have to be there.

step "the operator's policy and settings"
cp -p /etc/vmav/policy.toml /test/state/policy.toml
cat >>/etc/vmav/policy.toml <<'END'

[[rule]]
name = "test malware"
signature = "Vmav.Test.*"
session = "user"
profile = "exact"
action = "kill"
evidence = true
END
metrics=/var/lib/prometheus/node-exporter # as Debian's node_exporter has it
mkdir -p $metrics
sed -i "s|^#metrics = \"\"|metrics = \"$metrics\"|" /etc/vmav/vmav.toml
vmav policy check
# A signature for the code of the guest's malware.exe, in ClamAV's own form.
printf 'Vmav.Test.Malware:1:*:%s\n' "$(printf 'VMAV-TEST-MALWARE' | od -An -tx1 | tr -d ' \n')" >/var/lib/clamav/vmav-test.ndb
systemctl start clamav-daemon
systemctl restart vmav-watch

said=/test/state/console
# await N PATTERN: waits until the guest has said a line more than N, counted by the pattern.
await() {
	for _ in $(seq 360); do
		[ "$(grep -acE "$2" $said)" -le "$1" ] || return 0
		sleep 0.5
	done
	return 1
}
boot_guest() {
	: >$said
	virsh -q -c qemu:///system create /test/guest/domain.xml
	exec {say}> >(exec "$here/console.py" /test/guest/console $said)
	await 0 '^HB '
}
step "a guest is started with virsh"
if ! boot_guest; then
	tail -n 20 $said
	[ "$where" = lab ] || fail "the guest does not boot"
	# The emulation below the lab loses an interrupt now and then (docs/MODULE.md).
	echo "the guest stands still in its boot, and is started once more"
	virsh -q -c qemu:///system destroy win10
	boot_guest || fail "the guest does not boot"
fi

# recorded: the finding in the process $1, or in any, in the history, as JSON; nothing while
# it is under way.
recorded() {
	{ vmav history --format json || true; } | jq --arg pid "$1" -c \
		'[.[] | select(.domain == "win10" and ($pid == "any" or $pid == "\(.pid)") and .signature == "Vmav.Test.Malware" and (.outcome | test("^(decided|requested)?$") | not))] | first // empty'
}
# dealt PID: waits for the record of the finding in that process, and looks at what became of it.
dealt() {
	local f=
	for _ in $(seq 360); do
		f=$(recorded "$1")
		[ -z "$f" ] || break
		sleep 0.5
	done
	[ -n "$f" ] || { vmav watch status; vmav history; journalctl --no-pager -u vmav-watch | tail -n 20; fail "nothing is recorded of process $1"; }
	pid=$(jq .pid <<<"$f")
	vmav history show "$(jq .id <<<"$f")"
	[ "$(jq -r .action <<<"$f")" = "kill" ] || fail "the policy's rule did not decide: $f"
	if [ "$where" = lab ]; then
		[[ $(jq -r .outcome <<<"$f") = killed* ]] || fail "process $pid was not killed: $f"
		await 0 "^EXIT $pid malware.exe 0xc0000906" || { tail -n 30 $said; virsh -c qemu:///system qemu-monitor-command win10 --hmp info registers -a; fail "the guest does not say that process $pid has ended"; }
	else
		[[ $(jq -r .outcome <<<"$f") != killed* ]] || fail "killed without the module: $f"
	fi
	sha256=$(jq -r .sha256 <<<"$f")
}

step "what runs in the guest when it is started"
dealt any

step "malware starts in the guest"
printf 'pause\n' >&"$say"
await 0 '^CHURN 0' || fail "the guest does not hear"
n=$(grep -acE '^START [0-9]+ malware.exe' $said || true)
printf 'start malware.exe\n' >&"$say"
await "$n" '^START [0-9]+ malware.exe' || fail "the guest does not start malware.exe"
pid=$(sed -n 's/\r$//; s/^START \([0-9]*\) malware.exe$/\1/p' $said | tail -n 1)
dealt "$pid"
vmav watch status
[ "$where" != lab ] || [ "$(vmav watch status --format json | jq -r '.domains[] | select(.name == "win10").source')" = memhook ] || fail "the guest is not read through the module"

step "history, evidence, metrics, journal"
vmav history || true
vmav history verify
vmav evidence list
vmav evidence list --format json | jq -e --arg sum "$sha256" 'any(.[]; .sha256 == $sum)' >/dev/null || fail "there is no evidence $sha256"
vmav evidence extract "$sha256" -o /test/state/evidence
[ "$(sha256sum </test/state/evidence)" = "$sha256  -" ] || fail "the evidence is another file"
grep -q VMAV-TEST-MALWARE /test/state/evidence || fail "the evidence does not hold what was found"
cat $metrics/vmav.prom
[ "$(stat -c %a $metrics/vmav.prom)" = 644 ] || fail "node_exporter cannot read the metrics"
# count NAME LABELS: the sum of a counter's samples with these labels.
count() { sed -n "s/^$1{$2} //p" $metrics/vmav.prom | awk '{ n += $1 } END { print n + 0 }'; }
[ "$(count vmav_findings_total 'domain="win10",verdict="kill"')" -ge 2 ] || fail "the metrics do not have both findings"
if [ "$where" = lab ]; then
	[ "$(count vmav_actions_total 'action="kill",outcome="killed"')" = 2 ] || fail "the metrics do not have both kills"
fi
journalctl --no-pager -o cat -u vmav-watch | grep "Vmav.Test.Malware.*trigger=\"watch: new\"" || fail "the journal has no word of the finding"
journalctl --no-pager -o json -t vmav VMAV_TYPE=finding | jq -s -e --arg pid "$pid" 'any(.[]; tostring | contains($pid))' >/dev/null || fail "the journal has no entry of the finding with its fields"
denied=$(journalctl --no-pager -o cat -u vmav-watch | grep -iE 'operation not permitted|read-only file system|permission denied' || true)
[ -z "$denied" ] || fail "the unit's restrictions are in the way: $denied"

# The upgrade is of a policy that nobody has changed.
cat /test/state/policy.toml >/etc/vmav/policy.toml
systemctl restart vmav-watch
