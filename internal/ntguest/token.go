package ntguest

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Accounts that processes run as, by their well-known SIDs (Windows SDK, winnt.h).
const (
	sidSystem         = "S-1-5-18"
	sidLocalService   = "S-1-5-19"
	sidNetworkService = "S-1-5-20"
)

// account is the SID of the user whose token a process has: the session's user for
// what that user started, and for services what their group runs as.
func (b *builder) account(s processSpec) string {
	switch {
	case s.session == 1 && s.name != "csrss.exe" && s.name != "winlogon.exe":
		return b.userSID
	case strings.Contains(s.cmd, "LocalService"):
		return sidLocalService
	case strings.Contains(s.cmd, "NetworkService"), strings.Contains(s.cmd, "RPCSS"):
		return sidNetworkService
	}
	return sidSystem
}

// sidAttributes is one element of a token's UserAndGroups: SE_GROUP_* attributes.
type sidAttributes struct {
	sid        string
	attributes uint64
}

// tokenFacts are what differs from account to account.
type tokenFacts struct {
	logon               uint64 // AuthenticationId
	primaryGroup        string
	groups              []sidAttributes
	privileges, enabled uint64 // masks by SE_*_PRIVILEGE
}

func (b *builder) tokenFacts(account string) tokenFacts {
	const mandatory, owner, integrity = 0x7, 0xf, 0x60
	everyone, authenticated := sidAttributes{"S-1-1-0", mandatory}, sidAttributes{"S-1-5-11", mandatory}
	switch account {
	case sidSystem:
		return tokenFacts{0x3e7, sidSystem, []sidAttributes{{"S-1-5-32-544", owner &^ 1}, everyone, authenticated, {"S-1-16-16384", integrity}},
			0x1ff2ffffbc, 0x1e60b1e890} // with SeDebugPrivilege and SeTcbPrivilege
	case sidLocalService, sidNetworkService:
		logon := uint64(0x3e5)
		if account == sidNetworkService {
			logon = 0x3e4
		}
		return tokenFacts{logon, account, []sidAttributes{everyone, {"S-1-5-32-545", mandatory}, {"S-1-5-6", mandatory}, authenticated,
			{"S-1-16-16384", integrity}},
			0x60a00028, 0x60800000}
	}
	machine := account[:strings.LastIndexByte(account, '-')]
	return tokenFacts{0x2c1e7, machine + "-513", []sidAttributes{{machine + "-513", mandatory}, everyone, {"S-1-5-32-545", mandatory}, {"S-1-5-4", mandatory},
		authenticated, {"S-1-2-0", mandatory}, {"S-1-16-8192", integrity}}, 0x602880000, 0x800000}
}

// newToken makes the primary token of a process: its user and groups follow the
// fixed part, as SepCreateToken lays them out.
func (b *builder) newToken(p *process) uint64 {
	account := b.account(p.spec)
	facts := b.tokenFacts(account)
	sids := append([]sidAttributes{{account, 0}}, facts.groups...)
	fixed := uint64(b.at("_TOKEN", 0).must("VariablePart").Offset)
	entry := b.sizeof("_SID_AND_ATTRIBUTES")
	size := fixed + entry*uint64(len(sids))
	for _, s := range sids {
		size += uint64(len(sidBytes(s.sid)))
	}
	va := b.newObject("Token", "", max(size, b.sizeof("_TOKEN")), 0)
	o := b.at("_TOKEN", va)
	b.live.luid += 0x11 + b.rng.Uint64N(0x100)
	o.set(b.live.luid, "TokenId")
	o.set(b.live.luid+1, "ModifiedId")
	o.set(facts.logon, "AuthenticationId")
	o.set(uint64(max(p.spec.session, 0)), "SessionId")
	o.set(1, "TokenType") // TokenPrimary
	o.set(facts.privileges, "Privileges.Present")
	o.set(facts.enabled, "Privileges.Enabled")
	o.set(facts.enabled, "Privileges.EnabledByDefault")
	array := va + fixed
	at := array + entry*uint64(len(sids))
	for i, s := range sids {
		e := b.at("_SID_AND_ATTRIBUTES", array+entry*uint64(i))
		e.set(at, "Sid")
		e.set(s.attributes, "Attributes")
		if s.sid == facts.primaryGroup {
			o.set(at, "PrimaryGroup")
		}
		raw := sidBytes(s.sid)
		b.kernel.write(at, raw)
		at += uint64(len(raw))
	}
	o.set(uint64(len(sids)), "UserAndGroupCount")
	o.set(array, "UserAndGroups")
	o.set(uint64(len(sids)-1), "IntegrityLevelIndex")
	o.set(at-array, "VariableLength")
	return va
}

// sidBytes is the binary form of a SID ("Windows Data Types", [MS-DTYP] 2.4.2.2).
func sidBytes(text string) []byte {
	parts := strings.Split(text, "-")
	var numbers []uint32
	for _, part := range parts[1:] {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			panic(fmt.Errorf("SID %q: %w", text, err))
		}
		numbers = append(numbers, uint32(n))
	}
	out := []byte{byte(numbers[0]), byte(len(numbers) - 2), 0, 0, 0, 0, 0, byte(numbers[1])}
	for _, n := range numbers[2:] {
		out = binary.LittleEndian.AppendUint32(out, n)
	}
	return out
}

// lastRID is the last part of a SID, which tells the guest's accounts apart.
func lastRID(sid string) uint32 {
	raw := sidBytes(sid)
	return binary.LittleEndian.Uint32(raw[len(raw)-4:])
}

// Levels of _PS_PROTECTION: type in bits 0 to 2, signer in bits 4 to 7.
const (
	protectedSystem = 0x72 // protected, WinSystem
	lightWinTcb     = 0x61 // protected light, WinTcb
	lightAntimal    = 0x31 // protected light, Antimalware
)

// protection is the level of a process, as Windows has protected its own since 8.1.
func (b *builder) protection(s processSpec) uint64 {
	if _, ok := b.at("_EPROCESS", 0).field("Protection.Level"); !ok {
		return 0
	}
	switch s.name {
	case "System", "Registry":
		return protectedSystem
	case "smss.exe", "csrss.exe", "wininit.exe", "services.exe":
		return lightWinTcb
	case "MsMpEng.exe":
		return lightAntimal
	}
	return 0
}
