package worker

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
)

// packer is a finder that has profiles as files, which then are parsed by the worker
// alone.
type packer interface {
	FindPacked(winstruct.Identity) ([]byte, error)
}

func (v *served) profile(q frame) (frame, error) {
	var id winstruct.Identity
	if err := json.Unmarshal(q.args, &id); err != nil {
		return frame{}, fmt.Errorf("no identity of a profile: %w", err)
	}
	var file []byte
	var err error
	if p, ok := v.profiles.(packer); ok {
		file, err = p.FindPacked(id)
	} else {
		var p *winstruct.Profile
		if p, err = v.profiles.Find(id); err == nil {
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

// large is an answer in pieces.
func (v *served) large(data []byte, err error) frame {
	if err == nil && len(data) > maxAnswer {
		err = fmt.Errorf("an answer of %d bytes is too large", len(data))
	}
	if err != nil {
		return failure(err)
	}
	v.more = data
	return v.piece(binary.LittleEndian.AppendUint32(nil, uint32(len(data))))
}

func (v *served) piece(args []byte) frame {
	n := copy(v.window, v.more)
	v.more = v.more[n:]
	return frame{n: n, args: args}
}

func (v *served) neighbours(q frame) (frame, error) {
	near, ok := v.profiles.(introspect.Neighbours)
	if !ok {
		return frame{}, errors.New("a question for profiles that it was not offered")
	}
	all := near.Near(clip(string(q.args)))
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

func (v *served) neighbour(q frame) (frame, error) {
	v.mu.Lock()
	all := v.near
	v.mu.Unlock()
	i, err := strconv.Atoi(string(q.args))
	if err != nil || i < 0 || i >= len(all) {
		return frame{}, fmt.Errorf("a question for profile %q of %d", clip(string(q.args)), len(all))
	}
	if p, ok := v.profiles.(interface {
		Packed(winstruct.Entry) ([]byte, error)
	}); ok {
		file, err := p.Packed(all[i])
		return v.large(file, err), nil
	}
	var file []byte
	p, err := v.profiles.(introspect.Neighbours).Open(all[i])
	if err == nil {
		file, err = pack(p)
	}
	return v.large(file, err), nil
}
