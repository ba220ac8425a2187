package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "vmav.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestEveryKeyIsRead(t *testing.T) {
	got, err := Load(write(t, `
uri = "qemu:///session"
source = "qemu"
state_directory = "/s"
runtime_directory = "/r"
policy = "/p.toml"
dry_run = true
[clamd]
socket = "/c.ctl"
databases = ["/d1", "/d2"]
slots = 8
[watch]
cpu_percent = 200
memory = "2G"
interval = "12h"
jitter = "5m"
poll = "20ms"
domains.include = ["win*"]
domains.exclude = "win-test"
[history]
keep = "10d"
max_size = "2M"
[evidence]
keep = "1h"
max_size = "3M"
[cache]
max_size = "4M"
[report]
journal = false
syslog = true
notify = ["/bin/x", "-y"]
metrics = "/m"
[report.webhook]
url = "https://example.org/x"
secret_file = "/k"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{File: got.File, URI: "qemu:///session", Source: "qemu", StateDirectory: "/s", RuntimeDirectory: "/r", Policy: "/p.toml", PolicySet: true,
		DryRun:  true,
		Clamd:   Clamd{"/c.ctl", []string{"/d1", "/d2"}, 8},
		Watch:   Watch{200, 2 << 30, 12 * time.Hour, 5 * time.Minute, 20 * time.Millisecond, Domains{[]string{"win*"}, []string{"win-test"}}},
		History: History{10 * day, 2 << 20}, Evidence: Evidence{time.Hour, 3 << 20}, Cache: Cache{4 << 20},
		Report: Report{false, true, []string{"/bin/x", "-y"}, Webhook{"https://example.org/x", "/k"}, "/m"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// A value that is its default would hide that its key is not read.
	def, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	var same func(at string, a, b reflect.Value)
	same = func(at string, a, b reflect.Value) {
		if a.Kind() == reflect.Struct {
			for i := range a.NumField() {
				same(at+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		} else if reflect.DeepEqual(a.Interface(), b.Interface()) {
			t.Errorf("%s is at its default: the test says nothing of it", at)
		}
	}
	same("Config", reflect.ValueOf(got), reflect.ValueOf(def))
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"uri = 'x'\n[watch]\ncpu = 5", "vmav.toml:3: watch.cpu: unknown key"},
		{"source = 'xen'", `vmav.toml:1: source: "xen": known are auto, memhook and qemu`},
		{"policy = 'p.toml'", `vmav.toml:1: policy: "p.toml" is no absolute path`},
		{"[clamd]\nslots = 0", "vmav.toml:2: clamd.slots: 0: 1 to 64 are possible"},
		{"[clamd]\ndatabases = ['/a',\n'b']", `vmav.toml:3: clamd.databases[1]: "b" is no absolute path`},
		{"[watch]\ninterval = '1 hour'", `vmav.toml:2: watch.interval: "1 hour" is no duration`},
		{"[watch]\ninterval = '10m'", "vmav.toml:2: watch.interval: a jitter of 1h is longer than the interval of 10m"},
		{"[watch]\ninterval = '10m'\njitter = '20m'", "vmav.toml:3: watch.jitter: a jitter of 20m is longer"},
		{"[watch]\nmemory = '1'", `vmav.toml:2: watch.memory: "1": 64M to 1T are possible`},
		{"[watch.domains]\ninclude = ['']", "vmav.toml:2: watch.domains.include[0]: an empty pattern"},
		{"[evidence]\nmax_size = 5", "vmav.toml:2: evidence.max_size: it is an integer, not a size"},
		{"[report]\nnotify = 'mail'", `vmav.toml:2: report.notify: the command "mail" is no absolute path`},
		{"[report.webhook]\nurl = 'http://example.org/'", "http is for this host alone"},
		{"[report.webhook]\nurl = 'https://u:p@example.org/'", "it carries a password"},
		{"[report.webhook]\nurl = 'example.org'", "no address of a web server"},
		{"[report.webhook]\nsecret_file = '/k'", "there is no url"},
	} {
		c, err := Load(write(t, tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s", tt.text, err, tt.want)
		}
		if !reflect.DeepEqual(c, Config{}) {
			t.Errorf("%q: a configuration beside an error: %+v", tt.text, c)
		}
	}
	for _, url := range []string{"http://127.0.0.1:8080/x", "http://[::1]/", "http://localhost/", "https://siem.example.org/hook"} {
		if _, err := Load(write(t, "[report.webhook]\nurl = '"+url+"'")); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestWhichFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a file that was asked for and is not there is no error")
	}
	if os.Geteuid() == 0 {
		c, err := Default()
		if err != nil || c.StateDirectory != "/var/lib/vmav" || c.RuntimeDirectory != "/run/vmav" || c.Policy != "/etc/vmav/policy.toml" {
			t.Errorf("root's: %+v, %v", c, err)
		}
		return
	}
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("XDG_STATE_HOME", "relative")
	t.Setenv("XDG_RUNTIME_DIR", "/x")
	c, err := Load("")
	if err != nil || c.File != "" || c.Policy != dir+"/vmav/policy.toml" || c.RuntimeDirectory != "/x/vmav" ||
		!strings.HasSuffix(c.StateDirectory, "/.local/state/vmav") {
		t.Errorf("a user's: %+v, %v", c, err)
	}
}

// Whatever the text, an error leaves no configuration, and what is accepted is within
// its bounds.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("[watch]\ninterval = '10m'\njitter = '1m'"))
	f.Add([]byte("[report.webhook]\nurl = 'http://[::1]/'"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Default()
		if err != nil {
			t.Fatal(err)
		}
		if parse("vmav.toml", data, &c) != nil {
			return
		}
		if c.Clamd.Slots < 1 || c.Clamd.Slots > 64 || c.Watch.Jitter < 0 || c.Watch.Jitter > c.Watch.Interval || c.Watch.Poll < time.Millisecond ||
			c.Cache.MaxSize < 1<<20 {
			t.Errorf("%+v", c)
		}
	})
}
