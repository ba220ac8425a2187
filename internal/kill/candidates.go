package kill

import (
	"context"
	"fmt"
	"slices"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/subject"
	"vmav.dev/vmav/internal/verdict"
)

// maxArmed is how many services are asked to come at once. The first whose thread comes is
// the surrogate. Most services wait most of the time. The module keeps source.MaxSaved
// contexts, and each service that comes needs one.
const maxArmed = source.MaxSaved - 2

// candidate is a process that may serve as surrogate, with what was verified of it.
type candidate struct {
	action // on the process, guarded by its identity
	id     introspect.Identity
	calls  map[string]entry // stubs of the system calls, by name
	park   uint64           // address of a jump to itself
}

// candidateSubject returns a process as the rules for surrogates see it.
func (k *attempt) candidateSubject(p *introspect.Process) (verdict.Candidate, error) {
	c := verdict.Candidate{Subject: subject.Of(p), Wow64: p.Wow64, HasUserMode: p.PEB != 0,
		Protected: slices.Contains(p.Flags, introspect.FlagProtected)}
	var err error
	if c.Account, err = k.guest.UserSID(p); err != nil {
		c.Account = ""
	}
	return c, err
}

// candidates returns the processes that may serve as surrogate, those with the most threads
// first. For each other process whose program the policy names, it calls why with the
// reason.
func (k *attempt) candidates(ctx context.Context, ctl *control, lib *library, why func(string)) ([]*candidate, error) {
	if err := k.shadowStacks(ctx); err != nil {
		return nil, err
	}
	procs := slices.Clone(k.procs)
	slices.SortStableFunc(procs, func(a, b introspect.Process) int { return int(b.Threads) - int(a.Threads) })
	var out []*candidate
	for i := range procs {
		p := &procs[i]
		if p.EPROCESS == k.target.EPROCESS || len(out) == maxArmed {
			continue
		}
		subject := subject.Of(p)
		if k.opt.Policy.Names(subject) {
			c, err := k.candidate(ctx, ctl, lib, p)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				why(fmt.Sprintf("%s[%d]: %v", p.Name, p.PID, err))
				continue
			}
			out = append(out, c)
		}
	}
	return out, nil
}

// candidate verifies that a process may serve as surrogate and can.
func (k *attempt) candidate(ctx context.Context, ctl *control, lib *library, p *introspect.Process) (*candidate, error) {
	subject, err := k.candidateSubject(p)
	if no := k.opt.Policy.Surrogate(subject); no != "" {
		if err != nil {
			return nil, fmt.Errorf("%s (%w)", no, err)
		}
		return nil, fmt.Errorf("%s", no)
	}
	id, st, err := k.guest.Identify(p.EPROCESS)
	if err != nil {
		return nil, err
	}
	if id.PID != p.PID || st.Exiting {
		return nil, fmt.Errorf("it is ending")
	}
	guards, err := k.guest.Guards(id)
	if err != nil {
		return nil, err
	}
	v, err := k.mapping(ctx, lib, p, id)
	if err != nil {
		return nil, err
	}
	c := &candidate{action: action{attempt: k, ctl: ctl, p: p, guards: guards.All()}, id: id, calls: make(map[string]entry)}
	as := k.guest.UserSpace(p)
	for _, name := range []string{ntOpenProcess, ntTerminateProcess, ntClose} {
		e, err := lib.entryOf(k.guest, p, v, name)
		if err != nil {
			return nil, err
		}
		c.calls[name] = e
	}
	for _, rva := range lib.parks {
		va := v.Start + uint64(rva)
		var code [2]byte
		m, err := as.Mapping(va)
		if err != nil || !m.User || !m.Executable || k.host.ReadPhys(code[:], m.GPA) != nil || code != [2]byte{0xeb, 0xfe} {
			continue
		}
		c.park = va
		return c, nil
	}
	return nil, fmt.Errorf("no jump to itself is in its memory to park a thread at (%d are known)", len(lib.parks))
}

// maxMappings bounds the processes whose mapping of the library is remembered.
const maxMappings = 4096

// mapping returns where a process maps the library. It looks that up once for each process,
// because ntdll is never unmapped.
func (k *attempt) mapping(ctx context.Context, lib *library, p *introspect.Process, id introspect.Identity) (*introspect.VAD, error) {
	k.mu.Lock()
	v := k.mappings[id]
	k.mu.Unlock()
	if v != nil {
		return v, nil
	}
	v, err := findMapping(ctx, k.guest, p, lib.control)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.mappings) >= maxMappings {
		clear(k.mappings)
	}
	k.mappings[id] = v
	return v, nil
}

// shadowStacks fails if the guest keeps shadow stacks (CR4.CET). They do not have the
// return address of a call that was made up here.
func (k *attempt) shadowStacks(ctx context.Context) error {
	const cet = 1 << 23
	regs, err := k.host.Registers(ctx)
	if err != nil {
		return fmt.Errorf("read vCPU registers: %w", err)
	}
	for i := range regs {
		if regs[i].CR4&cet != 0 {
			return fmt.Errorf("the guest has control-flow enforcement on: a surrogate's calls would not return")
		}
	}
	return nil
}
