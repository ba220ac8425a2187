package clam

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	configPath     = "/etc/clamav/clamd.conf"
	systemDatabase = "/var/lib/clamav"
	// privateMaxFile is the private engine's MaxFileSize in bytes, above the largest image
	// that is ever passed to it.
	privateMaxFile = 512 << 20
	// defaultMaxFile is clamd's own default for MaxFileSize.
	defaultMaxFile = 100 << 20
	startTimeout   = 5 * time.Minute // a full database takes most of a minute on a slow host
	stopTimeout    = 5 * time.Second
	dirPrefix      = "vmav-clamd-"
)

// daemon is a private clamd. Its directory has its configuration, its socket and a lock
// that its owner holds. It ends together with this process, for whatever reason that ends.
type daemon struct {
	dir    string
	socket string
	lock   *os.File
	proc   *os.Process
	exited chan struct{} // closed when the process has ended

	database string // directory
	loaded   string // stamp of what lay there when the daemon loaded it
	identity string // of that and the options; "" where the files changed while it loaded them

	mu  sync.Mutex
	log []string // its last lines
}

// startDaemon starts a private clamd and waits until it answers.
func startDaemon(ctx context.Context, opt Options) (*daemon, error) {
	bin, err := findClamd()
	if err != nil {
		return nil, err
	}
	base := opt.TempDir
	if base == "" {
		base = runtimeDir()
	}
	removeStale(base)
	dir, err := os.MkdirTemp(base, dirPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a directory for a private clamd: %w", err)
	}
	d := &daemon{dir: dir, socket: filepath.Join(dir, "clamd.ctl"), exited: make(chan struct{})}
	if err := d.start(bin, opt); err != nil {
		err = errors.Join(err, d.stop())
		return nil, fmt.Errorf("start a private clamd: %w", err)
	}
	if err := d.await(ctx, opt.Progress); err != nil {
		err = errors.Join(err, d.stop())
		return nil, fmt.Errorf("start a private clamd: %w", err)
	}
	if now, err := readSignatures(d.database); err != nil || now.stamp() != d.loaded {
		d.identity = "" // it may have loaded the files of before or of after
	}
	return d, nil
}

// findClamd also looks in Debian's place for it, because not every user has sbin in PATH.
func findClamd() (string, error) {
	if p, err := exec.LookPath("clamd"); err == nil {
		return p, nil
	}
	if p, err := exec.LookPath("/usr/sbin/clamd"); err == nil {
		return p, nil
	}
	return "", errors.New("no clamd answers and none is installed; Debian's package is clamav-daemon")
}

func runtimeDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return dir
		}
	}
	return os.TempDir()
}

// removeStale removes the directories of private daemons whose owner is gone, which their
// free lock shows.
func removeStale(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
		if err != nil {
			continue // not ours, or just being made
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}

func (d *daemon) start(bin string, opt Options) error {
	var err error
	if d.lock, err = os.OpenFile(filepath.Join(d.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock its directory: %w", err)
	}
	if d.database, err = d.gather(opt.Databases); err != nil {
		return err
	}
	// These settings affect results. The daemon does not look for new signatures: it keeps
	// what its identity was made of.
	options := fmt.Sprintf(`MaxFileSize %d
MaxScanSize %d
StreamMaxLength %d
PCREMaxFileSize %d
MaxScanTime 300000
AlertExceedsMax yes
DetectPUA no
SelfCheck 0
`, privateMaxFile, 2*privateMaxFile, privateMaxFile, privateMaxFile)
	before, err := readSignatures(d.database)
	if err != nil {
		return err
	}
	d.loaded = before.stamp()
	if d.identity, err = privateIdentity(before, options); err != nil {
		return err
	}
	conf := filepath.Join(d.dir, "clamd.conf")
	text := fmt.Sprintf(`Foreground yes
LocalSocket %s
DatabaseDirectory %s
TemporaryDirectory %s
MaxThreads %d
MaxQueue 64
IdleTimeout 3600
ReadTimeout 300
CommandReadTimeout 300
%s`, d.socket, d.database, d.dir, max(2, min(runtime.NumCPU(), 16)), options)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.Command(bin, "--config-file="+conf)
	cmd.Dir = d.dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	// In a process group of its own, so that an interrupt at the terminal reaches only this
	// process. It ends the daemon, or the daemon ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that started the daemon ends, so that
		// thread is kept as long as the daemon lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			d.proc = cmd.Process
		}
		started <- err
		if err != nil {
			close(d.exited)
			return
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			d.note(lines.Text())
		}
		_ = cmd.Wait()
		close(d.exited)
	}()
	return <-started
}

// gather links all given databases into one directory, since clamd takes only one.
func (d *daemon) gather(databases []string) (string, error) {
	if len(databases) == 0 {
		return systemDatabase, nil
	}
	dir := filepath.Join(d.dir, "database")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	n := 0
	for _, db := range databases {
		abs, err := filepath.Abs(db)
		if err != nil {
			return "", err
		}
		st, err := os.Stat(abs)
		if err != nil {
			return "", fmt.Errorf("signature database: %w", err)
		}
		files := []string{abs}
		if st.IsDir() {
			entries, err := os.ReadDir(abs)
			if err != nil {
				return "", fmt.Errorf("signature database: %w", err)
			}
			files = nil
			for _, e := range entries {
				if e.Type().IsRegular() {
					files = append(files, filepath.Join(abs, e.Name()))
				}
			}
		}
		for _, f := range files {
			n++
			if err := os.Symlink(f, filepath.Join(dir, strconv.Itoa(n)+"-"+filepath.Base(f))); err != nil {
				return "", err
			}
		}
	}
	if n == 0 {
		return "", fmt.Errorf("no signature files in %s", strings.Join(databases, ", "))
	}
	return dir, nil
}

const keptLines = 20

func (d *daemon) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, line)
	if len(d.log) > keptLines {
		d.log = d.log[1:]
	}
}

// lastWords returns the daemon's last message, preferably an error.
func (d *daemon) lastWords() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := len(d.log) - 1; i >= 0; i-- {
		if strings.Contains(d.log[i], "ERROR") {
			return clip(d.log[i])
		}
	}
	if n := len(d.log); n > 0 {
		return clip(d.log[n-1])
	}
	return ""
}

// await waits until the daemon answers.
func (d *daemon) await(ctx context.Context, progress func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	begin := time.Now()
	said := false
	for {
		if _, err := version(ctx, d.socket); err == nil {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("it ended at once: %s", d.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w (it last said: %s)", ctx.Err(), d.lastWords())
		case <-time.After(50 * time.Millisecond):
		}
		if !said && progress != nil && time.Since(begin) > time.Second {
			progress("starting a private clamd and loading its signatures")
			said = true
		}
	}
}

// stop ends the daemon and removes its files.
func (d *daemon) stop() error {
	if d.proc != nil {
		_ = d.proc.Signal(syscall.SIGTERM)
		select {
		case <-d.exited:
		case <-time.After(stopTimeout):
			_ = d.proc.Kill()
			<-d.exited
		}
	}
	err := os.RemoveAll(d.dir)
	if d.lock != nil {
		d.lock.Close()
	}
	return err
}

// systemMaxFile returns the MaxFileSize of the host's clamd in bytes. clamd answers OK for
// a larger file without reading it.
func systemMaxFile(path string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return defaultMaxFile
	}
	limit := uint64(defaultMaxFile)
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) != 2 || f[0] != "MaxFileSize" && f[0] != "MaxScanSize" {
			continue
		}
		n, ok := parseSize(f[1])
		if ok && n > 0 {
			if f[0] == "MaxFileSize" {
				limit = n
			} else {
				limit = min(limit, n)
			}
		}
	}
	return limit
}

// parseSize parses a size of clamd's configuration: a number of bytes, or a number followed
// by K or M.
func parseSize(s string) (uint64, bool) {
	unit := uint64(1)
	switch {
	case strings.HasSuffix(strings.ToUpper(s), "K"):
		unit, s = 1<<10, s[:len(s)-1]
	case strings.HasSuffix(strings.ToUpper(s), "M"):
		unit, s = 1<<20, s[:len(s)-1]
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return n * unit, err == nil
}
