package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/tomlfile"
)

// setting is a line of the packaged file that is a setting and no text.
var setting = regexp.MustCompile(`(?m)^#([^\s])`)

// The packaged file sets nothing, names every key, and the values that it names are the
// defaults.
func TestPackagedFileIsTheDefaults(t *testing.T) {
	data, err := os.ReadFile("../../packaging/vmav.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := in(systemConfig, systemState, systemRuntime)
	got := want
	if err := parse("vmav.toml", data, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: %+v, want %+v", err, got, want)
	}
	// From nothing, so that what is not named is not there.
	text := setting.ReplaceAllString(string(data), "$1")
	got = Config{}
	if err := parse("vmav.toml", []byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if !got.PolicySet {
		t.Error("policy is not named")
	}
	got.PolicySet = false
	empty := func(list *[]string) { // a list of nothing is none
		if *list != nil && len(*list) == 0 {
			*list = nil
		}
	}
	empty(&got.Clamd.Databases)
	empty(&got.Watch.Domains.Exclude)
	empty(&got.Report.Notify)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("named:    %+v\ndefaults: %+v", got, want)
	}
	// Every key that the reader asks for is named: those that are "" or false are not
	// told apart by their values.
	_, root, err := tomlfile.Parse("vmav.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("load.go")
	if err != nil {
		t.Fatal(err)
	}
	get := regexp.MustCompile(`(?:t|clamd|watch|domains|history|evidence|hook)\.(?:String|Strings|Bool|Int|Size|Duration|Table)\("(\w+)"`)
	keys := get.FindAllStringSubmatch(string(source), -1)
	if len(keys) < 30 || !root.Has("uri") {
		t.Fatalf("%d keys", len(keys))
	}
	for _, k := range keys {
		if !regexp.MustCompile(`(?m)^(\[([\w.]+\.)?`+k[1]+`\]|`+k[1]+` =)`).MatchString(text) && !strings.Contains(text, "["+k[1]+"]") {
			t.Errorf("key %s is not named", k[1])
		}
	}
}
