package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
)

// Pulse notices cheaply that processes were created in a guest and that address spaces
// changed. It reads a few words at known guest-physical addresses, without translating
// addresses or enumerating anything. Its results are hints. The guest can forge or hide
// changes, so the caller also enumerates everything from time to time. A Pulse is for one
// goroutine.
//
// Windows appends a process to the list of PsActiveProcessHead when it makes the address
// space and before the first thread runs. The head's Blink therefore refers to the newest
// process.
type Pulse struct {
	g     *Guest
	blink uint64 // guest-physical address of PsActiveProcessHead.Blink

	newest Identity // of the last process on the list
	spaces []space
	words  []byte // buffer for the words of all spaces
	reqs   []source.Request
}

// space is what Pulse remembers of one process between two calls of Spaces.
type space struct {
	id      Identity
	changes uint64 // a hash of the root and the count of its VADs
	exited  bool
}

// wordsOfSpace is the number of words that are read of each process: the root of its VADs,
// their count, and its exit time.
const wordsOfSpace = 3

// Change is what one call of Spaces saw.
type Change struct {
	Spaces []Identity // processes that mapped or unmapped something
	Exited []Identity // processes that have ended since
}

// NewPulse makes a Pulse of a guest. It reads through src, which must not cache pages. src
// stays the caller's.
func (g *Guest) NewPulse(src source.Source) (*Pulse, error) {
	p := &Pulse{g: g.WithSource(src)}
	if err := p.locate(); err != nil {
		return nil, err
	}
	_, err := p.Beat()
	return p, err
}

func (p *Pulse) locate() error {
	gpa, err := p.g.physical(p.g.kernel.Base + p.g.off.Sym.ActiveProcessHead + uint64(p.g.as.ptr))
	if err != nil {
		return fmt.Errorf("find PsActiveProcessHead: %w", err)
	}
	p.blink = gpa
	return nil
}

// Beat reports whether a process may have been created since the last call. It costs two
// reads. The error is of the source; source.ErrGone means that the guest has ended.
func (p *Pulse) Beat() (bool, error) {
	var word [8]byte
	if err := p.g.src.ReadPhys(word[:p.g.as.ptr], p.blink); err != nil {
		return false, err
	}
	entry := binary.LittleEndian.Uint64(word[:])
	at := entry - uint64(p.g.off.Process.Links)
	if at == p.newest.EPROCESS && p.same(at) {
		return false, nil
	}
	p.g.Refresh()
	id, _, err := p.g.Identify(at)
	if err != nil {
		// The list is being changed, or its end is no process. The caller's enumeration
		// will tell.
		p.newest = Identity{EPROCESS: at}
		if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
			return false, err
		}
		return true, nil
	}
	changed := id != p.newest
	p.newest = id
	return changed, nil
}

// same reports whether the newest process is still the same one: Windows may have freed its
// object and used it again.
func (p *Pulse) same(at uint64) bool {
	created, err := p.g.as.u64(at + uint64(p.g.off.Process.CreateTime))
	return err == nil && created == p.newest.CreateTime
}

// Watch sets the processes that Spaces looks at, and finds their words in guest-physical
// memory. Processes whose words are not found are left out.
func (p *Pulse) Watch(procs []Identity) error {
	p.g.Refresh()
	if err := p.locate(); err != nil {
		return err
	}
	known := make(map[Identity]space, len(p.spaces))
	for _, s := range p.spaces {
		known[s.id] = s
	}
	p.spaces, p.reqs = p.spaces[:0], p.reqs[:0]
	if need := 8 * wordsOfSpace * len(procs); cap(p.words) < need {
		p.words = make([]byte, need)
	}
	o := &p.g.off.Process
	for _, id := range procs {
		fields := [wordsOfSpace]uint32{p.g.off.VAD.TreeRoot, p.g.off.VAD.TreeRoot, o.ExitTime}
		if o.VadCount.Name != "" {
			fields[1] = o.VadCount.Offset
		}
		reqs := p.reqs
		for i, f := range fields {
			gpa, err := p.g.physical(id.EPROCESS + uint64(f))
			if err != nil {
				reqs = p.reqs
				break
			}
			n := 8 * (wordsOfSpace*len(p.spaces) + i)
			size := int(p.g.as.ptr)
			if f == o.ExitTime {
				size = 8
			}
			clear(p.words[n : n+8])
			reqs = append(reqs, source.Request{Addr: gpa, P: p.words[n : n+size]})
		}
		if len(reqs) == len(p.reqs) {
			continue
		}
		p.reqs = reqs
		s, ok := known[id]
		if !ok {
			s = space{id: id}
		}
		p.spaces = append(p.spaces, s)
	}
	return nil
}

// Spaces returns which of the watched processes have changed their address space or ended
// since the last call. The first call after a process was added returns it as changed.
func (p *Pulse) Spaces() (Change, error) {
	var c Change
	if err := source.ReadBatch(p.g.src, p.reqs); err != nil {
		return c, err
	}
	for i := range p.spaces {
		s := &p.spaces[i]
		reqs := p.reqs[wordsOfSpace*i : wordsOfSpace*(i+1)]
		if s.exited || reqs[0].Err != nil || reqs[1].Err != nil || reqs[2].Err != nil {
			continue
		}
		le, words := binary.LittleEndian, p.words[8*wordsOfSpace*i:]
		if le.Uint64(words[16:]) != 0 {
			s.exited = true
			c.Exited = append(c.Exited, s.id)
			continue
		}
		// Never zero, so that the first call sees a change.
		now := le.Uint64(words)*0x9e3779b97f4a7c15 ^ le.Uint64(words[8:]) | 1
		if now != s.changes {
			s.changes = now
			c.Spaces = append(c.Spaces, s.id)
		}
	}
	return c, nil
}

// Newest reads processes from the end of the process list, newest first, and stops before
// the first one for which known returns true. What could not be read comes back as
// problems; it is an error if nothing could.
func (g *Guest) Newest(ctx context.Context, known func(Identity) bool) ([]Process, []Problem, error) {
	var out []Process
	var problems []Problem
	head := g.kernel.Base + g.off.Sym.ActiveProcessHead
	rec := g.as.newRecord(g.off.Process.Size)
	err := g.as.walkList(ctx, head, uint64(g.as.ptr), maxProcesses, func(entry uint64) bool {
		at := entry - uint64(g.off.Process.Links)
		id, _, err := g.Identify(at)
		if err != nil {
			problems = append(problems, Problem{What: fmt.Sprintf("process at %#x", at), Err: err})
			return true
		}
		if known(id) {
			return false
		}
		p, probs := g.process(rec, at)
		p.Sources = []string{SourceList}
		out = append(out, p)
		problems = append(problems, probs...)
		return true
	})
	if err != nil && (ctx.Err() != nil || len(out) == 0) {
		return nil, problems, fmt.Errorf("read the end of the process list: %w", err)
	}
	if err != nil {
		problems = append(problems, Problem{What: "process list", Err: err})
	}
	return out, problems, nil
}
