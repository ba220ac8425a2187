# Sourced by inside.sh when the packages are installed: looks at what they brought.

step "units"
systemd-analyze verify /lib/systemd/system/vmav-*.{service,timer} 2>/test/state/verify || fail "systemd-analyze verify: $(cat /test/state/verify)"
! grep vmav /test/state/verify || fail "systemd-analyze verify complains"
for u in vmav-watch.service vmav-sweep.timer; do
	systemctl --quiet is-enabled $u || fail "$u is not enabled"
	systemctl --quiet is-active $u || { systemctl status --no-pager $u; fail "$u does not run"; }
done
systemd-analyze security --no-pager vmav-watch.service | tail -n 1

step "account, device, directories"
getent group vmav >/dev/null && getent passwd _vmav >/dev/null || fail "no group vmav or user _vmav"
[ "$(stat -c '%U:%G' /var/lib/vmav)" = root:vmav ] || fail "/var/lib/vmav: $(stat -c '%U:%G %a' /var/lib/vmav)"

step "bash completion"
bash -c '. /usr/share/bash-completion/completions/vmav.bash; COMP_WORDS=(vmav ch); COMP_CWORD=1; _vmav; [ "${COMPREPLY[*]}" = check ]' ||
	fail "vmav ch<TAB> does not become check"

step "cron does nothing beside systemd"
line=$(sed -n 's/^17 3 \* \* \*  root  //p' /etc/cron.d/vmav)
out=$(sh -c "$line" 2>&1) || fail "the line of /etc/cron.d/vmav: status $?"
[ -z "$out" ] || fail "the line of /etc/cron.d/vmav printed: $out"

step "the module, by DKMS"
[ "$(dkms status -m kvm-memhook | grep -c installed)" = 1 ] || { cat /test/state/install.log; fail "dkms status: $(dkms status)"; }
dkms status -m kvm-memhook

step "vmav check"
status=0
vmav check --format json >/test/state/check.json || status=$?
vmav check || true
jq -e 'type == "array" and length > 10' /test/state/check.json >/dev/null || fail "vmav check --format json is no array of answers"
bad=$(jq -r '.[] | select(.ok == false and ((.fix // "") == "")) | .what' /test/state/check.json)
[ -z "$bad" ] || fail "vmav check says no way to mend: $bad"
want=0
jq -e 'any(.[]; .ok == false and (.optional | not))' /test/state/check.json >/dev/null && want=2
[ $status = $want ] || fail "vmav check ended with status $status, want $want"
