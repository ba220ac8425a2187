package policy

import (
	"os"
	"reflect"
	"regexp"
	"testing"

	"vmav.dev/vmav/internal/verdict"
)

// The packaged policy is the default one, and its examples are good rules.
func TestPackagedPolicyIsTheDefault(t *testing.T) {
	data, err := os.ReadFile("../../packaging/policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse("policy.toml", data, noLists)
	if err != nil {
		t.Fatal(err)
	}
	p.Allow.Hashes = nil
	if want := Default(); !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
	text := regexp.MustCompile(`(?m)^#([^\s])`).ReplaceAll(data, []byte("$1"))
	if p, err = Parse("policy.toml", text, func(string) ([]byte, error) { return nil, nil }); err != nil || len(p.Warnings) > 0 || len(p.Rules) != 3 {
		t.Fatalf("the examples: %v, %v", err, p.Warnings)
	}
	if !reflect.DeepEqual(p.Surrogates, verdict.DefaultSurrogates()) {
		t.Errorf("surrogates %v are named, %v are the default", p.Surrogates, verdict.DefaultSurrogates())
	}
}
