package broker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/wire"
)

// packer is a finder that has profiles as files. Only the worker parses them.
type packer interface {
	FindPacked(winstruct.Identity) ([]byte, error)
}

func (v *laneServer) profile(q wire.Frame) (wire.Frame, error) {
	var id winstruct.Identity
	if err := json.Unmarshal(q.Args, &id); err != nil {
		return wire.Frame{}, fmt.Errorf("no identity of a profile: %w", err)
	}
	var file []byte
	var err error
	if p, ok := v.means.Profiles.(packer); ok {
		file, err = p.FindPacked(id)
	} else {
		var p *winstruct.Profile
		if p, err = v.means.Profiles.Find(id); err == nil {
			file, err = pack(p)
		}
	}
	return v.large(file, err), nil
}

func pack(p *winstruct.Profile) ([]byte, error) {
	var b bytes.Buffer
	err := p.Save(&b)
	return b.Bytes(), err
}

// large returns the first piece of an answer that comes in pieces.
func (v *laneServer) large(data []byte, err error) wire.Frame {
	if err == nil && len(data) > wire.MaxAnswer {
		err = fmt.Errorf("an answer of %d bytes is too large", len(data))
	}
	if err != nil {
		return wire.Failure(err)
	}
	v.more = data
	return v.piece(binary.LittleEndian.AppendUint32(nil, uint32(len(data))))
}

func (v *laneServer) piece(args []byte) wire.Frame {
	n := copy(v.window, v.more)
	v.more = v.more[n:]
	return wire.Frame{N: n, Args: args}
}

func (v *laneServer) neighbours(q wire.Frame) (wire.Frame, error) {
	near, ok := v.means.Profiles.(introspect.Neighbours)
	if !ok {
		return wire.Frame{}, errors.New("a question for profiles that it was not offered")
	}
	all := near.Near(wire.Clip(string(q.Args)))
	list := slices.Clone(all)
	for i := range list {
		e := &list[i]
		e.Name, e.Path, e.Sources, e.Err = strconv.Itoa(i), "", nil, nil
	}
	v.mu.Lock()
	v.near = all
	v.mu.Unlock()
	text, err := json.Marshal(list)
	return v.large(text, err), nil
}

func (v *laneServer) neighbour(q wire.Frame) (wire.Frame, error) {
	v.mu.Lock()
	all := v.near
	v.mu.Unlock()
	i, err := strconv.Atoi(string(q.Args))
	if err != nil || i < 0 || i >= len(all) {
		return wire.Frame{}, fmt.Errorf("a question for profile %q of %d", wire.Clip(string(q.Args)), len(all))
	}
	if p, ok := v.means.Profiles.(interface {
		Packed(winstruct.Entry) ([]byte, error)
	}); ok {
		file, err := p.Packed(all[i])
		return v.large(file, err), nil
	}
	var file []byte
	p, err := v.means.Profiles.(introspect.Neighbours).Open(all[i])
	if err == nil {
		file, err = pack(p)
	}
	return v.large(file, err), nil
}
