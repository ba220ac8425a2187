# Sourced by inside.sh with the packages installed: a domain is started, and nothing else is
# done. The service has to find the infected process of the test guest.

step "a guest is started with virsh"
# A signature for the code of the guest's malware.exe, in ClamAV's own form.
printf 'Vmav.Test.Malware:1:*:%s\n' "$(printf 'VMAV-TEST-MALWARE' | od -An -tx1 | tr -d ' \n')" >/var/lib/clamav/vmav-test.ndb
systemctl start clamav-daemon
virsh -q -c qemu:///system create /test/guest/domain.xml

# found: how many findings the service has, of any domain.
found() { vmav watch status --format json 2>/dev/null | jq '[.domains[]?.findings] | add // 0'; }
for _ in $(seq 600); do
	[ "$(found)" -ge 1 ] && break
	sleep 0.5
done
vmav watch status
[ "$(found)" -ge 1 ] || { journalctl --no-pager -u vmav-watch | tail -n 20; fail "the service found nothing in the guest"; }
journalctl --no-pager -o cat -u vmav-watch | grep Vmav.Test.Malware || fail "the journal has no word of the finding"
systemd_denied=$(journalctl --no-pager -o cat -u vmav-watch | grep -iE 'operation not permitted|read-only file system|permission denied' || true)
[ -z "$systemd_denied" ] || fail "the unit's restrictions are in the way: $systemd_denied"
