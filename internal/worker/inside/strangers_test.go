package inside

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/worker/wire"
)

// strangers are programs in a worker's place: a worker that hostile memory has taken over.
// They run behind the same door, with a worker's lanes.
var strangers = map[string]func(ls lanes, args []string) error{
	"attempt": func(_ lanes, args []string) error {
		broker, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for _, a := range attempts {
			if a.name == args[0] {
				err := a.do(broker)
				if err == nil {
					return errors.New("ESCAPED: " + a.name)
				}
				return fmt.Errorf("refused: %w", err)
			}
		}
		return errors.New("no attempt " + args[0])
	},
	"message": func(ls lanes, args []string) error { return messages[args[0]](ls) },
	"panic":   func(lanes, []string) error { var p *wire.Frame; p.N = 1; return nil },
	"fault": func(lanes, []string) error { // a page of its own that it may not touch
		p, err := unix.MmapPtr(-1, 0, nil, 4096, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		*(*int)(p) = 1
		return nil
	},
	"abort": func(lanes, []string) error {
		return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGABRT)
	},
	"memory": func(lanes, []string) error {
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
			if len(all) > 1<<20 {
				return errors.New("ESCAPED: a TiB of memory")
			}
		}
	},
	"loop": func(lanes, []string) error {
		for n := 0; ; n++ {
		}
	},
	"questions": func(ls lanes, _ []string) error {
		for {
			if err := ls.ask(wire.AskProgress, nil, make([]byte, 8), nil); err != nil {
				return err
			}
		}
	},
	"leave": func(lanes, []string) error { return nil },
	"page in": func(ls lanes, _ []string) error {
		c := &control{ls}
		a := source.Action{Kind: source.ActionPageIn, ErrorCode: source.FaultUser, Cookie: 77, DTB: 0x1000, Address: 0x5000, Timeout: time.Second,
			Guards: make([]source.Guard, 1)}
		if err := c.Do(&a); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ev, err := c.Event(ctx)
		if err != nil || ev.Kind != source.EventApplied || ev.Cookie != 77 {
			return fmt.Errorf("event %+v: %w", ev, err)
		}
		if pending, err := c.Cancel(77); err != nil || pending {
			return fmt.Errorf("cancel: %v, %w", pending, err)
		}
		return errors.New("paged in")
	},
	// A worker that reports a true finding and then falls over.
	"report and panic": func(ls lanes, _ []string) error {
		content := []byte("… " + scantest.Malware + " …")
		r, err := newEngine(ls).Scan(context.Background(), "it", content)
		if err != nil || r.Signature == "" {
			return fmt.Errorf("scan: %+v, %w", r, err)
		}
		if err := (&events{lanes: ls, content: true}).report(scan.Found{Finding: findingOf(content, r.Signature),
			Content: scan.Content{Scanned: content}}); err != nil {
			return err
		}
		panic("on the way\x1b[31m")
	},
}

// An attempt is something that a worker must not be able to do. It returns nil where it
// could.
type attempt struct {
	name   string
	deadly bool // the kernel ends the process; else the call is refused
	do     func(broker int) error
}

func call(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return e
	}
	return nil
}

func open(path string, flags int) error {
	_, err := unix.Open(path, flags, 0)
	return err
}

func path(s string) uintptr {
	p, _ := unix.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(p))
}

var attempts = []attempt{
	{"open /etc/passwd", false, func(int) error { return open("/etc/passwd", unix.O_RDONLY) }},
	{"open /etc/shadow", false, func(int) error { return open("/etc/shadow", unix.O_RDONLY) }},
	{"open by the old call", false, func(int) error { return call(unix.SYS_OPEN, path("/etc/passwd"), unix.O_RDONLY) }},
	{"openat2", false, func(int) error {
		_, err := unix.Openat2(unix.AT_FDCWD, "/etc/passwd", &unix.OpenHow{})
		return err
	}},
	{"create a file", false, func(int) error { return open("/tmp/vmav-escaped", unix.O_CREAT|unix.O_WRONLY) }},
	{"open the device", false, func(int) error { return open("/dev/kvm-memhook", unix.O_RDWR) }},
	{"open /dev/kvm", false, func(int) error { return open("/dev/kvm", unix.O_RDWR) }},
	{"open its own memory", false, func(int) error { return open("/proc/self/mem", unix.O_RDWR) }},
	{"open the broker's memory", false, func(broker int) error { return open(fmt.Sprintf("/proc/%d/mem", broker), unix.O_RDWR) }},
	{"list a directory", false, func(int) error { return open("/", unix.O_RDONLY|unix.O_DIRECTORY) }},
	{"stat", false, func(int) error { return unix.Stat("/etc", new(unix.Stat_t)) }},
	{"unlink", false, func(int) error { return unix.Unlink("/tmp/vmav-not-there") }},
	{"connect to the network", true, func(int) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}})
	}},
	{"connect to a local socket", true, func(int) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrUnix{Name: "/run/libvirt/libvirt-sock"})
	}},
	{"netlink", true, func(int) error {
		_, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		return err
	}},
	{"connect a lane elsewhere", true, func(int) error { return unix.Connect(wire.FirstLane, &unix.SockaddrUnix{Name: "\x00x"}) }},
	{"pass a descriptor", true, func(int) error {
		return unix.Sendmsg(wire.FirstLane, []byte{0}, unix.UnixRights(0), nil, 0)
	}},
	{"execve", true, func(int) error { return unix.Exec("/bin/true", []string{"true"}, nil) }},
	{"execveat", true, func(int) error { return call(unix.SYS_EXECVEAT, 0, path(""), 0, 0, unix.AT_EMPTY_PATH) }},
	{"memory file to execute", true, func(int) error {
		fd, err := unix.MemfdCreate("x", 0)
		if err != nil {
			return err
		}
		return call(unix.SYS_EXECVEAT, uintptr(fd), path(""), 0, 0, unix.AT_EMPTY_PATH)
	}},
	{"fork", true, func(int) error { return call(unix.SYS_FORK) }},
	{"clone as a process", false, func(int) error { return call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)) }},
	{"clone3", false, func(int) error { return call(unix.SYS_CLONE3, uintptr(unsafe.Pointer(new([11]uint64))), 88) }},
	{"ptrace the broker", true, func(broker int) error { return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(broker)) }},
	{"read the broker", true, func(broker int) error {
		var b [8]byte
		iov := []unix.Iovec{{Base: &b[0], Len: 8}}
		_, err := unix.ProcessVMReadv(broker, iov, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
		return err
	}},
	{"take the broker's descriptors", true, func(broker int) error { return call(unix.SYS_PIDFD_OPEN, uintptr(broker), 0) }},
	{"kill the broker", true, func(broker int) error { return unix.Kill(broker, unix.SIGUSR2) }},
	{"kill a thread of the broker", false, func(broker int) error { return unix.Tgkill(broker, broker, unix.SIGUSR2) }},
	{"kill by the kernel's hand", false, func(broker int) error {
		_, err := unix.FcntlInt(wire.FirstLane, unix.F_SETOWN, broker)
		return err
	}},
	{"ioctl", false, func(int) error { return call(unix.SYS_IOCTL, wire.FirstLane, unix.TIOCSTI, path("x")) }},
	{"limit the broker", false, func(broker int) error {
		return unix.Prlimit(broker, unix.RLIMIT_NOFILE, &unix.Rlimit{}, nil)
	}},
	{"raise its limits", false, func(int) error {
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 10, Max: 10})
	}},
	{"slow the broker down", false, func(broker int) error { return unix.Setpriority(unix.PRIO_PROCESS, broker, 19) }},
	{"mount", true, func(int) error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }},
	{"user namespace", true, func(int) error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"bpf", true, func(int) error { return call(unix.SYS_BPF, 5, uintptr(unsafe.Pointer(new([16]uint64))), 128) }},
	{"io_uring", true, func(int) error { return call(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(new([30]uint32)))) }},
	{"perf", true, func(int) error { return call(unix.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(new([16]uint64)))) }},
	{"userfaultfd", true, func(int) error { return call(unix.SYS_USERFAULTFD, 0) }},
	{"setuid(0)", true, func(int) error { return call(unix.SYS_SETUID, 0) }},
	{"capabilities", true, func(int) error { return call(unix.SYS_CAPSET, 0, 0) }},
	{"be dumpable again", false, func(int) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }},
	{"new code", false, func(int) error {
		_, err := unix.MmapPtr(-1, 0, nil, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	}},
	{"make memory executable", false, func(int) error {
		b := make([]byte, 8192)
		at := (uintptr(unsafe.Pointer(&b[0])) + 4095) &^ 4095
		return call(unix.SYS_MPROTECT, at, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC)
	}},
	{"map a descriptor", false, func(int) error {
		_, err := unix.MmapPtr(wire.FirstLane+3, 0, nil, 4096, unix.PROT_READ, unix.MAP_SHARED)
		return err
	}},
	{"cut the window off", false, func(int) error { return unix.Ftruncate(wire.FirstLane+3, 0) }},
	{"shared memory", false, func(int) error { return call(unix.SYS_SHMGET, 0, 4096, 0o1600) }},
	{"watch files", false, func(int) error { _, err := unix.InotifyInit1(0); return err }},
}

// findingOf is a finding of a signature in a content.
func findingOf(content []byte, signature string) finding.Finding {
	return finding.Finding{Kind: finding.KindSignature, Image: "it", Signature: signature, SHA256: digest(content),
		Fidelity: finding.Fidelity{Form: finding.FormFile, Coverage: 1}, Subject: verdict.Subject{Kernel: true}}
}

// raw sends bytes as they are, whatever the protocol says.
func raw(ls lanes, p []byte) error {
	l := <-ls
	defer func() { ls <- l }()
	if _, err := unix.Write(l.FD, p); err != nil {
		return err
	}
	_, err := l.Receive()
	return err
}

// ask sends a question whose arguments are a stranger's, with a document in the window.
func ask(ls lanes, kind byte, document string, args ...byte) error {
	return ls.ask(kind, func(l *wire.Lane) int { return copy(l.Window, document) }, args, nil)
}

// messages are what no worker sends. The broker answers none of them.
var messages = map[string]func(ls lanes) error{
	"short":               func(ls lanes) error { return raw(ls, []byte{wire.AskRead}) },
	"oversize":            func(ls lanes) error { return raw(ls, make([]byte, wire.MaxFrame+100)) },
	"unknown kind":        func(ls lanes) error { return raw(ls, []byte{wire.LastKind + 1, 0, 0, 0, 0}) },
	"beyond the window":   func(ls lanes) error { return raw(ls, []byte{wire.AskFound, 1, 0, 16, 0}) },
	"garbage":             func(ls lanes) error { return raw(ls, []byte(strings.Repeat("\xff\xa5\x00GARBAGE", 100))) },
	"another protocol":    func(ls lanes) error { return ask(ls, wire.AskJob, "", 9, 9, 9, 9, 0) },
	"read nothing":        func(ls lanes) error { return ask(ls, wire.AskRead, "") },
	"read half a request": func(ls lanes) error { return ask(ls, wire.AskRead, "", 1, 2, 3) },
	"read too much":       func(ls lanes) error { return ask(ls, wire.AskRead, "", wire.AppendRead(nil, 0, wire.WindowSize+1)...) },
	"read beyond the window": func(ls lanes) error {
		return ask(ls, wire.AskRead, "", wire.AppendRead(wire.AppendRead(nil, 0, wire.WindowSize), 0, 1)...)
	},
	"read around the end": func(ls lanes) error { return ask(ls, wire.AskRead, "", wire.AppendRead(nil, ^uint64(0), 4096)...) },
	"no identity":         func(ls lanes) error { return ask(ls, wire.AskProfile, "", []byte("{")...) },
	"profile of no list":  func(ls lanes) error { return ask(ls, wire.AskNearOpen, "", []byte("7")...) },
	"profile below":       func(ls lanes) error { return ask(ls, wire.AskNearOpen, "", []byte("-1")...) },
	"scan without size":   func(ls lanes) error { return ask(ls, wire.AskScan, "") },
	"scan of another size": func(ls lanes) error {
		return ask(ls, wire.AskScan, "", binary.LittleEndian.AppendUint64(nil, 1<<40)...)
	},
	"no finding": func(ls lanes) error { return ask(ls, wire.AskFound, "[[[[", make([]byte, 8)...) },
	"a finding that was not scanned": func(ls lanes) error {
		text, _ := json.Marshal(wire.Found{Finding: findingOf([]byte("x"), "Win.Invented")})
		return ask(ls, wire.AskFound, string(text), make([]byte, 8)...)
	},
	"a finding of another file": func(ls lanes) error {
		content := []byte("… " + scantest.Malware + " …")
		r, err := newEngine(ls).Scan(context.Background(), "it", content)
		if err != nil {
			return err
		}
		return (&events{lanes: ls, content: true}).report(scan.Found{Finding: findingOf(content, r.Signature),
			Content: scan.Content{Scanned: []byte("another")}})
	},
	"coverage of no share": func(ls lanes) error {
		f := findingOf([]byte("x"), "")
		f.Fidelity.Coverage = 1e300
		text, _ := json.Marshal(wire.Found{Finding: f})
		return ask(ls, wire.AskFound, string(text), make([]byte, 8)...)
	},
	"errors that are none":   func(ls lanes) error { return ask(ls, wire.AskProblems, "{}") },
	"progress of nothing":    func(ls lanes) error { return ask(ls, wire.AskProgress, "", 1) },
	"result that is none":    func(ls lanes) error { return ask(ls, wire.AskDone, "null!") },
	"status that is none":    func(ls lanes) error { return ask(ls, wire.AskDone, `{"Scan":{"status":"clean"}}`) },
	"counts below zero":      func(ls lanes) error { return ask(ls, wire.AskDone, `{"Scan":{"status":"scanned","images":-5}}`) },
	"findings in the result": func(ls lanes) error { return ask(ls, wire.AskDone, `{"Scan":{"status":"scanned","findings":[{}]}}`) },
	"kills in the result":    func(ls lanes) error { return ask(ls, wire.AskDone, `{"Scan":{"status":"scanned","kills":[{}]}}`) },
	"a kill": func(ls lanes) error {
		return (&control{ls}).Do(&source.Action{Kind: source.ActionRedirect, Cookie: 1, DTB: 0x1000, Timeout: time.Second, Guards: make([]source.Guard, 1)})
	},
	"a page-in without guards": func(ls lanes) error {
		return (&control{ls}).Do(&source.Action{Kind: source.ActionPageIn, ErrorCode: source.FaultUser, Cookie: 1, DTB: 0x1000, Timeout: time.Second})
	},
	"an event of no control": func(ls lanes) error { return ask(ls, wire.AskCancel, "", 1) },
	"a second job":           func(ls lanes) error { _, err := (&worker{lanes: ls}).next(); return err },
	"images of no scan":      func(ls lanes) error { return ask(ls, wire.AskLooked, strings.Repeat("\x00", wire.LookedSize)) },
	"a window that changes": func(ls lanes) error {
		l := <-ls
		go func() {
			for i := 0; ; i++ {
				l.Window[i%64] = byte(i)
			}
		}()
		for {
			if f, err := l.Call(wire.AskFound, 4096, make([]byte, 8)); err != nil || f.Code != wire.StatusOK {
				return err
			}
		}
	},
}
