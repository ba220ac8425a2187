package main

import (
	"io"
	"slices"
	"strings"
	"testing"
)

func TestOptionsAreAcceptedBehindTheDomain(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"vmav ps win10 --format json", "vmav ps --format json win10"},
		{"vmav ps --format=json win10", "vmav ps --format=json win10"},
		{"vmav -c qemu:///session scan a b -i --pid 4", "vmav -c qemu:///session scan -i --pid 4 a b"},
		{"vmav scan --all", "vmav scan --all"},
		{"vmav profile show X.json _EPROCESS -h", "vmav profile show -h X.json _EPROCESS"},
		{"vmav ps -- -odd-name", "vmav ps -- -odd-name"},
		{"vmav modules win10 812 -c test:///default", "vmav modules -c test:///default win10 812"},
		{"vmav", "vmav"},
		{"vmav nonsense -x", "vmav -x nonsense"},
	} {
		got := permute(newApp(io.Discard, io.Discard), strings.Fields(tt.in))
		if !slices.Equal(got, strings.Fields(tt.want)) {
			t.Errorf("permute(%q)\n got %q\nwant %q", tt.in, strings.Join(got, " "), tt.want)
		}
	}
}
