package main

import (
	"context"
	"errors"
	"testing"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/image"
	"vmav.dev/vmav/internal/winstruct"
)

// What could not be read of a process that has ended meanwhile is no problem; of one that
// lives, and of no process, it is.
func TestOnlyStandingProblemsAreTold(t *testing.T) {
	path, _ := laidOut(t, ntguest.Options{Build: "10.0.19041", Seed: 9})
	src, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	v := &view{target: &target{source: source.NewCache(src, cachePages)}}
	if v.guest, err = introspect.Open(context.Background(), v.source, winstruct.BuiltIn()); err != nil {
		t.Fatal(err)
	}
	procs, _, err := v.guest.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	lives := procs[len(procs)-1].Identity()
	ended := lives
	ended.PID += 4 // its object's memory is another's by now
	unread := errors.New("unread")
	got := v.standing([]introspect.Problem{
		{What: "ended", Err: unread, Process: ended},
		{What: "lives", Err: unread, Process: lives},
		{What: "ended, too", Err: unread, Process: ended},
		{What: "driver", Err: unread},
	})
	if len(got) != 2 || got[0].What != "lives" || got[1].What != "driver" {
		t.Errorf("%v", got)
	}
}
