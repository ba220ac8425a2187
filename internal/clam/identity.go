package clam

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Identity identifies the engine with its options and the signatures that it has loaded:
// engines with the same identity give the same answers. It is "" if that cannot be told;
// then no answer may be remembered.
//
// For a private daemon it is a digest of the content of its signature files, which it never
// reloads (see Outdated). For the host's it is a digest of its version and its database
// directory. It is "" from a change in that directory until the daemon must have noticed
// it, and if the configuration has changed since the daemon was started.
func (e *Engine) Identity(ctx context.Context) string {
	if e.daemon != nil {
		if e.daemon.identity == "" {
			return ""
		}
		return e.info.Version + "/" + e.daemon.identity
	}
	id, err := hostIdentity(ctx, e.addr, time.Now())
	if err != nil {
		return ""
	}
	return id
}

// Outdated reports whether signature files have changed since a private daemon loaded them,
// so that another engine should be started. The host's daemon reloads by itself.
func (e *Engine) Outdated() bool {
	if e.daemon == nil {
		return false
	}
	now, err := readSignatures(e.daemon.database)
	return err != nil || now.stamp() != e.daemon.loaded
}

// notSignatures are files in a database directory that clamd does not load.
var notSignatures = []string{"freshclam.dat", "mirrors.dat"}

// signatures are what a database directory holds.
type signatures struct {
	files  []string // paths, ascending
	states []os.FileInfo
	newest time.Time // last change of any, or of the directory
}

func readSignatures(dir string) (*signatures, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir) // ascending
	if err != nil {
		return nil, err
	}
	d := &signatures{newest: changed(st)}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || slices.Contains(notSignatures, e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		st, err := os.Stat(path) // what a link leads to
		if err != nil {
			return nil, err
		}
		if !st.Mode().IsRegular() {
			continue
		}
		d.files, d.states = append(d.files, path), append(d.states, st)
		if t := changed(st); t.After(d.newest) {
			d.newest = t
		}
	}
	if len(d.files) == 0 {
		return nil, fmt.Errorf("no signature files in %s", dir)
	}
	return d, nil
}

// changed returns a file's ctime, which nobody can set.
func changed(st os.FileInfo) time.Time {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return time.Unix(s.Ctim.Unix())
	}
	return st.ModTime()
}

// stamp identifies the files without reading them: a change of a file's content changes
// its ctime.
func (d *signatures) stamp() string {
	h := sha256.New()
	for i, st := range d.states {
		s, _ := st.Sys().(*syscall.Stat_t)
		if s == nil {
			s = new(syscall.Stat_t)
		}
		fmt.Fprintf(h, "%q %d %d %d %d %d\n", filepath.Base(d.files[i]), s.Dev, s.Ino, st.Size(), st.ModTime().UnixNano(), changed(st).UnixNano())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// digest identifies the files by their content.
func (d *signatures) digest(h hash.Hash) error {
	for i, path := range d.files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		one := sha256.New()
		n, err := io.Copy(one, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if n != d.states[i].Size() {
			return fmt.Errorf("%s changes while it is read", path)
		}
		fmt.Fprintf(h, "%q %x\n", filepath.Base(path), one.Sum(nil))
	}
	return nil
}

// privateIdentity identifies a private daemon before it starts, by its options and
// signatures.
func privateIdentity(files *signatures, options string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "private\n%s\n", options)
	if err := files.digest(h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// reloadTime is the time that the host's clamd may take to load a new database after it has
// noticed it.
const reloadTime = 10 * time.Minute

// defaultSelfCheck is clamd's own SelfCheck.
const defaultSelfCheck = 600

// hostIdentity identifies the clamd that listens at an address.
func hostIdentity(ctx context.Context, addr string, now time.Time) (string, error) {
	line, pid, err := askPeer(ctx, addr)
	if err != nil {
		return "", err
	}
	started, config, err := daemonProcess(pid)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(config)
	if err != nil {
		return "", err
	}
	if !changed(st).Before(started) {
		return "", fmt.Errorf("%s has changed since clamd was started", config)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		return "", err
	}
	dir, check := systemDatabase, uint64(defaultSelfCheck)
	for _, l := range strings.Split(string(text), "\n") {
		switch f := strings.Fields(l); {
		case len(f) == 2 && f[0] == "DatabaseDirectory":
			dir = f[1]
		case len(f) == 2 && f[0] == "SelfCheck":
			if check, err = strconv.ParseUint(f[1], 10, 32); err != nil {
				return "", fmt.Errorf("%s: SelfCheck: %w", config, err)
			}
		}
	}
	db, err := readSignatures(dir)
	if err != nil {
		return "", err
	}
	noticed := check > 0 && now.Sub(db.newest) > time.Duration(check)*time.Second+reloadTime
	if !db.newest.Before(started) && !noticed {
		return "", fmt.Errorf("%s has changed at %s and clamd may not have loaded it yet", dir, db.newest.Format(time.RFC3339))
	}
	h := sha256.New()
	fmt.Fprintf(h, "host\n%s\n%s\n%s\n%s\n", line, text, dir, db.stamp())
	return hex.EncodeToString(h.Sum(nil)), nil
}

// askPeer asks a daemon for its version, and the kernel for its process. If another process
// made the socket, as systemd does, the pid is 0.
func askPeer(ctx context.Context, addr string) (line string, pid int, err error) {
	conn, err := dial(ctx, addr)
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return "", 0, errors.New("clamd is behind a network")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return "", 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return "", 0, err
	}
	if cerr != nil {
		return "", 0, cerr
	}
	line, err = askVersion(ctx, conn)
	return line, int(cred.Pid), err
}

// daemonProcess returns when a clamd was started and its configuration file. If pid is not
// that of a clamd, the only clamd that runs is meant.
func daemonProcess(pid int) (started time.Time, config string, err error) {
	if comm(pid) != "clamd" {
		var all []int
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			if n, err := strconv.Atoi(filepath.Base(dir)); err == nil && comm(n) == "clamd" {
				all = append(all, n)
			}
		}
		if len(all) != 1 {
			return started, "", fmt.Errorf("%d processes are a clamd: which one answers is not known", len(all))
		}
		pid = all[0]
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return started, "", err
	}
	// The name may contain anything, so fields are counted from behind it: the first is the
	// third field of the line. The start time is the 22nd, in ticks since the host was
	// booted (proc(5)).
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return started, "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return started, "", err
	}
	var boot, wall unix.Timespec
	if err := errors.Join(unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot), unix.ClockGettime(unix.CLOCK_REALTIME, &wall)); err != nil {
		return started, "", err
	}
	const hz = 100 // USER_HZ on every architecture that KVM and we run on
	started = time.Unix(0, wall.Nano()-boot.Nano()+ticks*int64(time.Second/hz))
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return started, "", err
	}
	config = configPath
	list := strings.Split(string(args), "\x00")
	for i, a := range list {
		if v, ok := strings.CutPrefix(a, "--config-file="); ok {
			config = v
		} else if (a == "-c" || a == "--config-file") && i+1 < len(list) {
			config = list[i+1]
		}
	}
	return started, config, nil
}

func comm(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
