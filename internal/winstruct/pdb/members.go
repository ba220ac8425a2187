package pdb

// Member is a data member or constant in a list of fields.
type Member struct {
	Name   string // "" for one without a name: its own members count as its owner's
	Type   uint32 // type index; 0 for constants
	Offset uint64 // bytes from the start of the owner; bit fields: of their word
	Base   bool   // a base class, whose members the owner has too
	VTable bool   // the pointer to the table of virtual functions; it has no name
	Value  int64  // of a constant
}

// maxMembers bounds the members of one structure or enumeration, over all parts of its
// list.
const maxMembers = 1 << 16

// methodIntro reports whether a method's attributes say that it adds a slot to the table of
// virtual functions. The slot's offset then follows (CV_methodprop_e: intro, pure intro).
func methodIntro(attr uint16) bool {
	kind := attr >> 2 & 7
	return kind == 4 || kind == 6
}

// Members lists the data members and constants of a field list and its continuations, in
// the order of the file. Static members, methods, nested types, friends and virtual bases
// have no fixed place in a structure and are left out.
func (t *Types) Members(list uint32) ([]Member, error) {
	var out []Member
	seen := make(map[uint32]bool)
	todo := []uint32{list}
	for len(todo) > 0 {
		at := todo[0]
		todo = todo[1:]
		if at == 0 {
			continue
		}
		if seen[at] {
			return nil, corrupt("the field list %#x continues itself", list)
		}
		seen[at] = true
		rec, err := t.record(at)
		if err != nil {
			return nil, err
		}
		c := cursor{p: rec}
		if leaf := c.u16(); leaf != leafFieldList && leaf != leafFieldList16 {
			return nil, corrupt("type %#x is of kind %#x, not a field list", at, leaf)
		}
		for len(c.p) > 0 {
			if pad := c.p[0]; pad >= 0xf0 { // LF_PADn: n bytes to the next word
				c.take(max(1, min(int(pad&0xf), len(c.p))))
				continue
			}
			leaf := c.u16()
			m, next, ok := c.member(leaf)
			if c.bad {
				return nil, corrupt("field list %#x has a member of kind %#x that does not fit", at, leaf)
			}
			if next != 0 {
				todo = append(todo, next)
			}
			if ok {
				if out = append(out, m); len(out) > maxMembers {
					return nil, corrupt("the field list %#x has more than %d members", list, maxMembers)
				}
			}
		}
	}
	return out, nil
}

// member reads one entry of a field list, behind its leaf. next is the list that continues
// it. ok is false if the entry is no data member or constant.
func (c *cursor) member(leaf uint16) (m Member, next uint32, ok bool) {
	switch leaf {
	case leafMember16:
		m.Type = uint32(c.u16())
		c.u16() // attributes
		m.Offset = c.size()
		m.Name = c.text(true)
		return m, 0, true
	case leafMemberST, leafMember:
		c.u16()
		m.Type = c.u32()
		m.Offset = c.size()
		m.Name = c.text(leaf == leafMemberST)
		return m, 0, true
	case leafEnumerateST, leafEnumerate:
		c.u16()
		n := c.numeric()
		m.Value = int64(n.value)
		m.Name = c.text(leaf == leafEnumerateST)
		return m, 0, n.ok
	case leafBClass16:
		m.Type, m.Base = uint32(c.u16()), true
		c.u16()
		m.Offset = c.size()
		return m, 0, true
	case leafBClass, leafBInterface:
		c.u16()
		m.Type, m.Base = c.u32(), true
		m.Offset = c.size()
		return m, 0, true
	case leafVFuncTab16:
		m.Type, m.VTable = uint32(c.u16()), true
		return m, 0, true
	case leafVFuncTab:
		c.u16()
		m.Type, m.VTable = c.u32(), true
		return m, 0, true
	case leafVFuncOff16:
		m.Type, m.VTable = uint32(c.u16()), true
		m.Offset = uint64(c.u32())
		return m, 0, true
	case leafVFuncOff:
		c.u16()
		m.Type, m.VTable = c.u32(), true
		m.Offset = uint64(c.u32())
		return m, 0, true
	case leafIndex16:
		return m, uint32(c.u16()), false
	case leafIndex:
		c.u16()
		return m, c.u32(), false
	}
	c.skipMember(leaf)
	return m, 0, false
}

// skipMember skips an entry that is no data member.
func (c *cursor) skipMember(leaf uint16) {
	switch leaf {
	case leafVBClass16, leafIVBClass16:
		c.take(6)
		c.numeric()
		c.numeric()
	case leafVBClass, leafIVBClass:
		c.take(10)
		c.numeric()
		c.numeric()
	case leafSTMember16, leafMethod16:
		c.take(4)
		c.text(true)
	case leafSTMemberST, leafSTMember, leafMethodST, leafMethod, leafNestTypeST, leafNestType, leafNestTypeExST, leafNestTypeEx,
		leafMemberModST, leafMemberMod, leafFriendFcnST, leafFriendFcn:
		c.take(6)
		c.text(leaf < leafEnumerate)
	case leafNestType16, leafFriendFcn16:
		c.take(2)
		c.text(true)
	case leafFriendCls16:
		c.take(2)
	case leafFriendCls:
		c.take(6)
	case leafOneMethod16:
		attr := c.u16()
		c.u16()
		if methodIntro(attr) {
			c.u32()
		}
		c.text(true)
	case leafOneMethodST, leafOneMethod:
		attr := c.u16()
		c.u32()
		if methodIntro(attr) {
			c.u32()
		}
		c.text(leaf == leafOneMethodST)
	default:
		c.bad, c.p = true, nil
	}
}
