package notify

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script is a real program that is run for an event.
func script(t *testing.T, timeout time.Duration, text string, args ...string) *command {
	t.Helper()
	file := filepath.Join(t.TempDir(), "notify.sh")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return &command{append([]string{file}, args...), timeout}
}

func TestCommandGetsTheEventAndNothingElse(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("VMAV_LEAK", "x")
	c := script(t, time.Minute, `cat >"$1" && env >"$1.env" && echo "$# $2" >"$1.args"`, out, "$(id); *")
	e := event()
	if err := c.send(context.Background(), e); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var back Event
	if err := json.Unmarshal(text, &back); err != nil || back.ID != e.ID || back.Finding.Signature != "Win.Test" {
		t.Errorf("%v: %s", err, text)
	}
	if env, _ := os.ReadFile(out + ".env"); strings.Contains(string(env), "VMAV") || strings.Contains(string(env), "HOME") {
		t.Errorf("environment %s", env)
	}
	if args, _ := os.ReadFile(out + ".args"); string(args) != "2 $(id); *\n" {
		t.Errorf("arguments %q: a shell had them", args)
	}
}

func TestCommandsThatFail(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       string
	}{
		{"status", "echo no mail here >&2; exit 3", `exit status 3: it said "no mail here"`},
		{"signal", "kill -9 $$", "signal: killed"},
		{"endless output", "yes & wait", "it was not done in 500ms and was killed: it said \"y\\x0ay"},
	} {
		err := script(t, 500*time.Millisecond, tt.text).send(context.Background(), event())
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 4*commandOutput+200 {
			t.Errorf("%s: %.200v, want %s", tt.name, err, tt.want)
		}
	}
	none := &command{[]string{"/none/x"}, time.Minute}
	if err := none.send(context.Background(), event()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	// Who does not read his input is no failure.
	if err := script(t, time.Minute, "exec <&-; exit 0").send(context.Background(), event()); err != nil {
		t.Errorf("a command that does not read: %v", err)
	}
}

// A command that hangs is killed with all that it started.
func TestCommandIsKilledWithItsChildren(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	c := script(t, 700*time.Millisecond, `sleep 1000 & echo $! $$ >"$1.new"; mv "$1.new" "$1"; wait`, pids)
	err := c.send(context.Background(), event())
	if err == nil || !strings.Contains(err.Error(), "not done in 700ms") {
		t.Errorf("%v", err)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			if err = syscall.Kill(pid, 0); err != nil || zombie(pid) {
				err = os.ErrProcessDone
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		if err == nil {
			t.Errorf("process %d lives", pid)
		}
	}
}

// zombie tells whether a process has ended and nobody has asked for its status yet.
func zombie(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}
