package history

import (
	"os"
	"os/user"
	"strconv"
	"strings"
)

// What started a run.
const (
	TriggerCLI   = "cli"   // somebody at a command line
	TriggerHook  = "hook"  // libvirt's hook
	TriggerWatch = "watch" // the service
	TriggerTimer = "timer" // cron or a systemd timer
)

// Who is the user that a run belongs to.
type Who struct {
	UID  int    `json:"uid"`
	User string `json:"user,omitempty"` // "" if the host has no name for the UID
	// Login is the user that logged in and then became UID, as the kernel's audit knows
	// it. It is "" if that is the same user, or not known.
	Login string `json:"login,omitempty"`
}

// String is the user's name or number, with the user who logged in.
func (w Who) String() string {
	s := w.User
	if s == "" {
		s = strconv.Itoa(w.UID)
	}
	if w.Login != "" {
		s += " (" + w.Login + ")"
	}
	return s
}

// Origin says why something was done and who asked for it.
type Origin struct {
	Trigger string `json:"trigger"`
	Who     Who    `json:"who"`
	Command string `json:"command,omitempty"` // the command line
}

// Self is the origin of what this process does. trigger is one of the Trigger constants,
// args is the command line.
func Self(trigger string, args []string) Origin {
	o := Origin{Trigger: trigger, Who: Who{UID: os.Getuid(), User: userName(os.Getuid())}}
	if text, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		// The largest number of 32 bits means "not set".
		if id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32); err == nil && id != 1<<32-1 && int(id) != o.Who.UID {
			if o.Who.Login = userName(int(id)); o.Who.Login == "" {
				o.Who.Login = strconv.FormatUint(id, 10)
			}
		}
	}
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\") {
			words[i] = strconv.Quote(a)
		}
	}
	o.Command = strings.Join(words, " ")
	return o
}

func userName(uid int) string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return ""
	}
	return u.Username
}
