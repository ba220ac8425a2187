package source

import (
	"context"
	"fmt"
	"time"
)

// Writer is the optional capability to change guest memory.
type Writer interface {
	// WritePhys writes p to guest-physical address addr. On error a part may have been
	// written. The error wraps ErrHole if there is no RAM or it is read-only, or ErrGone or
	// ErrClosed if that is the cause.
	WritePhys(p []byte, addr uint64) error
}

// Controller is the optional capability to hook a guest and to act on its processes.
type Controller interface {
	// Control opens a control. The caller closes it.
	Control() (Control, error)
}

// Control is what the hooks and actions of one client on a guest hang on. Closing it cancels
// its pending actions, gives saved contexts back to their threads and releases held
// processes. Its methods are safe for concurrent use, except Event, which only one goroutine
// may call at a time. Every error wraps ErrGone if the guest has ended, and ErrClosed after Close.
type Control interface {
	// SetHooks replaces the hooks; the zero Hooks remove them.
	SetHooks(Hooks) error
	// Do starts an action. Its outcome comes as an event with the action's cookie.
	Do(*Action) error
	// Cancel ends an action and reports whether it was still pending. A held process is
	// released.
	Cancel(cookie uint64) (bool, error)
	// Event waits for the next event. After the guest has ended it returns one event of
	// kind EventGone, and then fails with ErrGone.
	Event(ctx context.Context) (Event, error)
	// Close ends the control. Calls that wait fail with ErrClosed.
	Close() error
}

// Hooks selects the events that a control gets beside the outcomes of its actions.
type Hooks struct {
	NewDTB bool          // a DTB that was not seen since the hooks were set
	Switch bool          // a vCPU has loaded one of DTBs
	User   bool          // a vCPU has loaded one of DTBs and is in user mode
	DTBs   []uint64      // physical addresses, for Switch and User; at most MaxWatches
	Period time.Duration // interrupt running vCPUs this often, 500 µs to 1 s; 0 for never
}

// Limits of one control. They are those of the module (uapi/kvm_memhook.h).
const (
	MaxWatches = 64 // DTBs in one Hooks
	MaxActions = 64 // actions pending
	MaxSaved   = 16 // contexts kept
	MaxGuards  = 4  // guards of one action
)

// ActionKind is what an Action does.
type ActionKind uint32

// Kinds of actions. All except ActionHold are delivered to a vCPU that is in user mode with
// one of the process's DTBs loaded and has no event in flight.
const (
	ActionRedirect ActionKind = 1 // set registers of a thread
	ActionPageIn   ActionKind = 2 // have the guest handle a page fault at Address
	ActionCapture  ActionKind = 3 // report a thread's registers
	ActionRestore  ActionKind = 4 // give a parked thread its saved context back
	ActionHold     ActionKind = 5 // no user-mode instruction of the process until cancelled or expired
)

// String implements fmt.Stringer.
func (k ActionKind) String() string {
	names := [...]string{1: "redirect", 2: "page in", 3: "capture", 4: "restore", 5: "hold"}
	if int(k) < len(names) && names[k] != "" {
		return names[k]
	}
	return fmt.Sprintf("action %d", uint32(k))
}

// ActionFlags restrict the threads that an action is delivered to, or change what it does.
type ActionFlags uint32

// Flags of actions.
const (
	AllThreads  ActionFlags = 1 << 0 // redirect, capture: every thread until the deadline
	InRIPRange  ActionFlags = 1 << 1 // only a thread whose RIP is in [RIPMin, RIPMax]
	OfTEB       ActionFlags = 1 << 2 // only the thread of TEB
	InCode64    ActionFlags = 1 << 3 // only a thread that executes 64-bit code
	InCode32    ActionFlags = 1 << 4 // only a thread that does not
	SaveContext ActionFlags = 1 << 5 // redirect: set RIP only, to a jump to itself, and keep the thread's context
	OnlyParked  ActionFlags = 1 << 6 // only the thread whose context is kept under Saved, while it is at that jump
)

// RegisterSet selects the registers that an action sets: bit n for Action.GPR[n].
type RegisterSet uint32

// General registers in encoding order, and what is set beside them.
const (
	RAX = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10

	SetRIP    RegisterSet = 1 << 16
	SetRFLAGS RegisterSet = 1 << 17 // the arithmetic flags and DF only
	SetCode64 RegisterSet = 1 << 18 // CS becomes flat 64-bit user code of selector CS
)

// Guard is a condition on guest memory that is checked at the moment an action is
// delivered: (*(uint64)(GPA) & Mask) == Value. If it does not hold, the action is cancelled
// for ReasonGuard and has no effect.
type Guard struct {
	GPA   uint64 // guest-physical, a multiple of 8
	Mask  uint64 // not 0
	Value uint64 // no bits outside Mask
}

// Action is one action on a guest process.
type Action struct {
	Kind    ActionKind
	Cookie  uint64 // chosen by the caller, unique while the action is pending or its context saved
	Flags   ActionFlags
	DTB     uint64        // of the process; flag bits are ignored
	UserDTB uint64        // its KVA shadow table, 0 for none
	Timeout time.Duration // 1 ms to 10 min

	Set    RegisterSet // Redirect
	GPR    [16]uint64
	RIP    uint64
	RFLAGS uint64
	CS     uint16 // SetCode64

	Address   uint64 // PageIn: user virtual address
	ErrorCode uint32 // PageIn: FaultUser, with FaultWrite or FaultFetch

	RIPMin, RIPMax uint64
	TEB            uint64
	Saved          uint64  // OnlyParked, ActionRestore: cookie of the action with SaveContext
	Guards         []Guard // at most MaxGuards
}

// Bits of a page fault's error code (Intel SDM, volume 3, "Page-Fault Exception").
const (
	FaultWrite = 1 << 1
	FaultUser  = 1 << 2
	FaultFetch = 1 << 4
)

// EventKind is the kind of an Event.
type EventKind uint32

// Kinds of events.
const (
	EventGone      EventKind = 1 // the guest has gone; the last event
	EventNewDTB    EventKind = 2
	EventSwitch    EventKind = 3
	EventUser      EventKind = 4
	EventApplied   EventKind = 5 // registers are the thread's own, before the action
	EventExpired   EventKind = 6 // its time is over; Threads says how many were reached
	EventCancelled EventKind = 7 // see Reason
)

// String implements fmt.Stringer.
func (k EventKind) String() string {
	names := [...]string{1: "gone", 2: "new DTB", 3: "switch", 4: "user mode", 5: "applied", 6: "expired", 7: "cancelled"}
	if int(k) < len(names) && names[k] != "" {
		return names[k]
	}
	return fmt.Sprintf("event %d", uint32(k))
}

// Reason is why an action was cancelled.
type Reason uint32

// Reasons.
const (
	ReasonAsked Reason = 0 // by Cancel
	ReasonGuard Reason = 1 // a guard did not hold
	ReasonMoved Reason = 2 // the guest's memory layout changed under it
	ReasonState Reason = 3 // the vCPU's state cannot be read or set
)

// String implements fmt.Stringer.
func (r Reason) String() string {
	switch r {
	case ReasonAsked:
		return "cancelled"
	case ReasonGuard:
		return "a guard did not hold"
	case ReasonMoved:
		return "guest memory was moved by its VMM"
	case ReasonState:
		return "the vCPU's state cannot be read or set"
	}
	return fmt.Sprintf("reason %d", uint32(r))
}

// Event is one report of a control's hooks or actions.
type Event struct {
	Kind    EventKind
	VCPU    uint32
	Time    time.Duration // CLOCK_MONOTONIC
	Cookie  uint64        // of the action
	Lost    uint64        // events lost before this one, since the control was opened
	DTB     uint64        // as loaded, without flag bits
	RIP     uint64
	RFLAGS  uint64
	TEB     uint64
	GPR     [16]uint64
	CPL     uint8
	CS      uint16
	Code64  bool   // it executes 64-bit code
	Threads uint32 // reached so far
	Reason  Reason
}
