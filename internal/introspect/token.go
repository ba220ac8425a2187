package introspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// LocalSystem is the SID of the account under which Windows itself and its services run
// (Windows SDK, winnt.h, SECURITY_LOCAL_SYSTEM_RID).
const LocalSystem = "S-1-5-18"

// UserSID returns, in text form, the SID of the account under which a process runs: the
// first entry of UserAndGroups in its primary token.
func (g *Guest) UserSID(p *Process) (string, error) {
	o := g.off
	if o.Process.Token == winstruct.Missing || o.Token.Users == winstruct.Missing || o.Token.Count == winstruct.Missing || o.Token.SID == winstruct.Missing {
		return "", errors.New("the profile has no tokens")
	}
	sid, err := g.userSID(p.EPROCESS)
	if err != nil {
		return "", fmt.Errorf("read user of process %d (%s): %w", p.PID, p.Name, err)
	}
	return sid, nil
}

func (g *Guest) userSID(eprocess uint64) (string, error) {
	o := g.off
	ref, err := g.as.word(eprocess + uint64(o.Process.Token))
	if err != nil {
		return "", err
	}
	token := g.as.f.fastRef(ref)
	count, err := g.as.integer(token+uint64(o.Token.Count), 4)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	if count == 0 {
		return "", fmt.Errorf("token at %#x has no user", token)
	}
	users, err := g.as.word(token + uint64(o.Token.Users))
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	at, err := g.as.word(users + uint64(o.Token.SID))
	if err != nil {
		return "", fmt.Errorf("user of the token: %w", err)
	}
	return g.sid(at)
}

// sid reads a SID ([MS-DTYP], 2.4.2.2): revision, count, authority, subauthorities.
func (g *Guest) sid(at uint64) (string, error) {
	const maxSub = 15
	var head [8]byte
	if err := g.as.Read(head[:], at); err != nil {
		return "", fmt.Errorf("SID: %w", err)
	}
	if head[0] != 1 || head[1] > maxSub {
		return "", fmt.Errorf("SID at %#x has revision %d and %d parts", at, head[0], head[1])
	}
	var authority [8]byte
	copy(authority[2:], head[2:8])
	var b strings.Builder
	fmt.Fprintf(&b, "S-1-%d", binary.BigEndian.Uint64(authority[:]))
	sub := g.as.newRecord(4 * uint32(head[1]))
	if len(sub.b) > 0 {
		if err := g.as.Read(sub.b, at+8); err != nil {
			return "", fmt.Errorf("SID: %w", err)
		}
	}
	for i := range int(head[1]) {
		fmt.Fprintf(&b, "-%d", sub.u32(uint32(4*i)))
	}
	return b.String(), nil
}
