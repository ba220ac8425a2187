package ready

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Answer is what was found out about one thing.
type Answer struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// Fix is the shell command that mends it; "" only where all is well.
	Fix string `json:"fix,omitempty"`
	// Optional: scanning does without it, so that it does not make the host unready.
	Optional bool `json:"optional,omitempty"`
}

// Ready tells whether nothing that is needed is missing.
func Ready(answers []Answer) bool {
	for _, a := range answers {
		if !a.OK && !a.Optional {
			return false
		}
	}
	return true
}

// Host is where is looked. A test puts a directory of its own in the place of the root.
type Host struct {
	root    string // before every path
	release string // of the running kernel
	uid     int
}

// This is the host that the process runs on, seen by its user.
func This() *Host {
	var u unix.Utsname
	h := &Host{root: "/", uid: os.Geteuid()}
	if unix.Uname(&u) == nil {
		h.release = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

func (h *Host) path(p string) string { return filepath.Join(h.root, p) }

func (h *Host) exists(p string) bool {
	_, err := os.Stat(h.path(p))
	return err == nil
}

// text is a small file's content without the space around it, "" where it cannot be read.
func (h *Host) text(p string) string {
	b, err := os.ReadFile(h.path(p))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// glob are the files of a pattern, as paths of the host.
func (h *Host) glob(pattern string) []string {
	found, _ := filepath.Glob(h.path(pattern)) // the patterns are constants, and well-formed
	for i, f := range found {
		found[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(f, h.root), "/")
	}
	return found
}

// asRoot is a command as this user has to type it.
func (h *Host) asRoot(command string) string {
	if h.uid == 0 {
		return command
	}
	return "sudo " + strings.ReplaceAll(command, " && ", " && sudo ")
}

// systemd tells whether it runs this host.
func (h *Host) systemd() bool { return h.exists("/run/systemd/system") }

// start is the command that starts a service.
func (h *Host) start(service string) string {
	if h.systemd() {
		return h.asRoot("systemctl enable --now " + service)
	}
	return h.asRoot("service " + service + " start")
}
