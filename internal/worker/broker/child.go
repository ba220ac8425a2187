package broker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
	"vmav.dev/vmav/internal/worker/wire"
)

// User is the system user that root's workers run as.
const User = "_vmav"

// maxThreads bounds the threads of that user, in all its workers together.
const maxThreads = 4096

// child is the process of a worker, seen from the broker. It does one job after the other.
type child struct {
	cmd    *exec.Cmd
	src    source.Source // of its guest
	memory uint64        // bytes that it may map
	lanes  []*wire.Lane
	window *window.Window
	said   output        // on stderr
	exited chan struct{} // closed when the process has ended and its state is set
	shared bool          // it maps guest memory
	user   string        // whose rights it has, "" for the broker's own
	note   func(landlockABI int)

	kept  *Kept       // whose worker it is
	alarm *time.Timer // ends it if it waits for work for too long

	jobs    chan *job      // holds a job that the worker has not asked for yet
	serving sync.WaitGroup // the goroutines that answer its questions

	mu      sync.Mutex
	servers []*laneServer // by lane
	job     *job          // job that the worker is doing; nil for none
	asks    bool          // it has asked for a job
	open    int           // number of other questions that are being answered
	heard   time.Time     // when the last answer was given
	ended   error         // why the broker ended it; the first reason counts
}

// output keeps the beginning of what a process writes. The beginning explains a crash.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const maxOutput = 8 << 10 // bytes

// Write implements io.Writer. It drops what exceeds maxOutput.
func (w *output) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p[:min(len(p), maxOutput-w.buf.Len())])
	return len(p), nil
}

// String returns what was kept.
func (w *output) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// start starts a worker with n lanes for a guest. The caller calls release.
func start(n int, memory uint64, userName string, src source.Source, args []string) (_ *child, err error) {
	c := &child{src: src, memory: memory, exited: make(chan struct{}), jobs: make(chan *job, 1)}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			c.release()
			err = fmt.Errorf("start a worker: %w", err)
		}
	}()
	if c.window, err = window.New(n * wire.WindowSize); err != nil {
		return nil, err
	}
	for i := range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(pair[1]), "lane"))
		c.lanes = append(c.lanes, wire.NewLane(pair[0], c.window.Bytes()[i*wire.WindowSize:(i+1)*wire.WindowSize:(i+1)*wire.WindowSize]))
	}
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	threads := uint64(0)
	if os.Geteuid() == 0 {
		if c.user, attr.Credential, err = credential(userName); err != nil {
			return nil, err
		}
		// It gets a network of its own that is empty.
		attr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
		threads = maxThreads
	}
	pass, shared := append(slices.Clone(files), c.window.File()), "0"
	if f := share(src, c.lanes[0].Window); f != nil {
		c.shared, shared = true, "1"
		files, pass = append(files, f), append(pass, f)
	}
	command := append([]string{"vmav", wire.Marker, strconv.Itoa(n), strconv.FormatUint(memory, 10), strconv.FormatUint(threads, 10), shared}, args...)
	err = c.launch(command, pass, attr)
	if errors.Is(err, unix.EPERM) && attr.Cloneflags != 0 {
		attr.Cloneflags = 0 // root may not make namespaces here; the filter works without them
		err = c.launch(command, pass, attr)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// launch starts this program as a worker.
func (c *child) launch(args []string, files []*os.File, attr *syscall.SysProcAttr) error {
	c.cmd = &exec.Cmd{Path: "/proc/self/exe", Dir: "/", Env: []string{}, Args: args, ExtraFiles: files, Stderr: &c.said,
		SysProcAttr: attr, WaitDelay: 5 * time.Second}
	started := make(chan error)
	go func() {
		// The process gets its death signal when the thread that started it ends. So this
		// thread lives as long as the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait() // the state says how it ended
			close(c.exited)
		}
	}()
	return <-started
}

// share returns a descriptor of guest memory, if the source can share it, for the worker to
// map. It puts the places of the memory into mem. It returns nil if the worker must read
// through the broker.
func share(src source.Source, mem []byte) *os.File {
	s, ok := src.(source.Sharer)
	if !ok {
		return nil
	}
	f, runs, err := s.Share()
	if err != nil {
		return nil // if the guest has a problem, a read will find it
	}
	if !window.EncodeRanges(mem, runs) {
		f.Close()
		return nil
	}
	return f
}

// credential returns the user that root's workers run as: the named one, or nobody if that
// does not exist.
func credential(name string) (string, *syscall.Credential, error) {
	if name == "" {
		name = User
	}
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return "", nil, fmt.Errorf("find a user for the worker: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return "", nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return "", nil, err
	}
	if uid == 0 || gid == 0 {
		return "", nil, fmt.Errorf("user %s has root's rights: not one for a worker", u.Username)
	}
	return u.Username, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}}, nil
}

// release closes the lanes and the window. Nobody uses them any longer.
func (c *child) release() {
	for _, l := range c.lanes {
		unix.Close(l.FD)
	}
	c.lanes = nil
	if c.window != nil {
		c.window.Close()
	}
}

// exitError says how the process ended. It must have ended.
func (c *child) exitError() error {
	last := strings.TrimSpace(c.said.String())
	first, _, _ := strings.Cut(last, "\n")
	st, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return errors.New("the worker ended")
	case strings.Contains(last, "out of memory") || strings.Contains(last, "cannot allocate memory"):
		return fmt.Errorf("the worker needed more than its %d MiB of memory", c.memory>>20)
	case st.Signaled() && st.Signal() == syscall.SIGSYS:
		return ErrViolation
	case st.Signaled():
		return fmt.Errorf("the worker was ended by %s", unix.SignalName(st.Signal()))
	case st.ExitStatus() == wire.ExitNoSandbox:
		return fmt.Errorf("%w: %s", ErrNoSandbox, wire.Clip(last))
	case st.ExitStatus() == 0:
		return errors.New("the worker ended without a result")
	case first == "":
		return fmt.Errorf("the worker ended with status %d", st.ExitStatus())
	}
	return fmt.Errorf("the worker crashed: %s", wire.Clip(first))
}
