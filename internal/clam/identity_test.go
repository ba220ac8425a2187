package clam

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The identity of a private engine is that of its signatures' content and of nothing else.
func TestPrivateIdentity(t *testing.T) {
	ctx := context.Background()
	open := func(path string) *Engine {
		t.Helper()
		e, err := Open(ctx, Options{Databases: []string{path}, TempDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	path := database(t)
	a, b := open(path), open(path)
	id := a.Identity(ctx)
	if id == "" || b.Identity(ctx) != id {
		t.Errorf("the same signatures are %q and %q", id, b.Identity(ctx))
	}
	if a.Outdated() {
		t.Error("outdated at once")
	}
	if err := os.WriteFile(path, []byte("Vmav.Test.Other:0:*:41424344\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if !a.Outdated() || a.Identity(ctx) != id {
		t.Errorf("other signatures on disk: outdated %v, identity %q; it has loaded %q", a.Outdated(), a.Identity(ctx), id)
	}
	if c := open(path); c.Identity(ctx) == id || c.Identity(ctx) == "" {
		t.Errorf("other signatures have the identity %q", c.Identity(ctx))
	}
}

// hostDaemon starts a clamd as a host's service would, with a database directory of its own.
func hostDaemon(t *testing.T, selfCheck int) (socket, conf, dir string) {
	t.Helper()
	bin, err := findClamd()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	socket, conf, dir = filepath.Join(base, "clamd.ctl"), filepath.Join(base, "clamd.conf"), filepath.Join(base, "db")
	text := fmt.Sprintf("Foreground yes\nLocalSocket %s\nDatabaseDirectory %s\nSelfCheck %d\n", socket, dir, selfCheck)
	sig := []byte("Vmav.Test.Marker:0:*:" + hex.EncodeToString([]byte(marker)) + "\n")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(conf, []byte(text), 0o644), os.WriteFile(filepath.Join(dir, "a.ndb"), sig, 0o644)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Millisecond) // the kernel counts a process's start in ticks of 10 ms
	cmd := exec.Command(bin, "--config-file="+conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 600 {
		if _, err = version(context.Background(), socket); err == nil {
			return socket, conf, dir
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal(err)
	return "", "", ""
}

// The host's clamd is identified while it has certainly loaded what lies in its directory.
func TestHostIdentity(t *testing.T) {
	ctx := context.Background()
	socket, conf, dir := hostDaemon(t, 0)
	id, err := hostIdentity(ctx, socket, time.Now())
	if err != nil || id == "" {
		t.Fatalf("%q, %v", id, err)
	}
	if again, err := hostIdentity(ctx, socket, time.Now()); err != nil || again != id {
		t.Errorf("asked again: %q, %v, want %q", again, err, id)
	}
	e, err := Open(ctx, Options{Socket: socket})
	if err != nil || e.Identity(ctx) != id || e.Outdated() {
		t.Errorf("%v; identity %q, want %q", err, e.Identity(ctx), id)
	}
	if err := os.WriteFile(filepath.Join(dir, "later.ndb"), []byte("Vmav.Test.Later:0:*:41424344\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := hostIdentity(ctx, socket, time.Now().Add(24*time.Hour)); err == nil || !strings.Contains(err.Error(), "may not have loaded") {
		t.Errorf("a new file that a clamd without SelfCheck has not loaded: %q, %v", got, err)
	}
	if got := e.Identity(ctx); got != "" {
		t.Errorf("then its identity is %q", got)
	}
	if err := os.WriteFile(conf, []byte("DatabaseDirectory "+dir+"\nSelfCheck 600\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := hostIdentity(ctx, socket, time.Now()); err == nil || !strings.Contains(err.Error(), "has changed since clamd was started") {
		t.Errorf("with another configuration: %q, %v", got, err)
	}
}

// A clamd that looks for new signatures by itself is identified again when it must have
// loaded them.
func TestHostIdentityAfterAnUpdate(t *testing.T) {
	ctx := context.Background()
	socket, _, dir := hostDaemon(t, 600)
	before, err := hostIdentity(ctx, socket, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "later.ndb"), []byte("Vmav.Test.Later:0:*:41424344\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := hostIdentity(ctx, socket, time.Now().Add(19*time.Minute)); err == nil {
		t.Errorf("after an update: %q", got)
	}
	after, err := hostIdentity(ctx, socket, time.Now().Add(21*time.Minute))
	if err != nil || after == before {
		t.Errorf("when it must have noticed: %q, %v; it was %q", after, err, before)
	}
}
