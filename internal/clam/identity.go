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

// Identity names the engine with the options and signatures that it has loaded now: with
// the same identity it says the same of the same content. It is "" where that cannot be
// told, and then nothing that the engine says should outlive what it was asked for.
//
// For a private daemon it is a digest of its signature files' content; it never reloads
// them (see Outdated). For the host's it is one of its version and of its database
// directory, known while what lies there is certainly what it has loaded: not from a
// change of the directory on until it must have noticed, and not where its configuration
// has changed since it was started.
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

// Outdated tells whether signature files have changed since a private daemon loaded them:
// it is time for another engine. The host's sees to itself.
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

// changed is when anything of a file last changed. Nobody can set it.
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

// privateIdentity identifies a private daemon before it starts: what it is to load, how.
func privateIdentity(files *signatures, options string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "private\n%s\n", options)
	if err := files.digest(h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// reloadTime is how long the host's clamd may take to load a new database once it has
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

// askPeer asks a daemon for its version and the kernel for who it is. A daemon whose
// socket another process made, as systemd does, has a pid of 0 here.
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

// daemonProcess finds when a clamd was started and its configuration file. A pid that is
// none of a clamd's stands for the only one that runs.
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
	// The fields behind the name, which may hold anything, begin with the third; the
	// start time is the 22nd, in ticks since the host was booted (proc(5)).
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
