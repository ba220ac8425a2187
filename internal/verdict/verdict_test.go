package verdict

import (
	"math/rand"
	"strings"
	"testing"
)

func globs(t testing.TB, texts ...string) (out []Glob) {
	t.Helper()
	for _, s := range texts {
		if g, ok := compiled[s]; ok {
			out = append(out, g)
			continue
		}
		g, err := NewGlob(s)
		if strings.Contains(s, `\`) {
			g, err = NewPathGlob(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		compiled[s] = g
		out = append(out, g)
	}
	return out
}

// compiled are patterns that tests use again and again.
var compiled = make(map[string]Glob)

func hashesOf(t testing.TB, sums ...string) Hashes {
	t.Helper()
	h := make(Hashes)
	if err := h.ParseHashes(strings.Join(sums, "\n")); err != nil {
		t.Fatal(err)
	}
	return h
}

var (
	sumA  = strings.Repeat("a1", 32)
	sumB  = strings.Repeat("b2", 32)
	yes   = true
	no    = false
	found = Finding{Kind: KindSignature, Signature: "Win.Trojan.Agent-1", SHA256: sumA, Cached: sumB, Coverage: 0.9,
		Image: `\Users\user\AppData\Local\Temp\evil.dll`}
	user = Subject{Domain: "win10", PID: 812, Name: "malware.exe", Path: `\Device\HarddiskVolume2\Users\user\AppData\Local\Temp\malware.exe`,
		Parent: "explorer.exe", ParentPath: `\Device\HarddiskVolume2\Windows\explorer.exe`, Session: 1}
)

func finding(f func(*Finding)) Finding { x := found; f(&x); return x }
func subject(f func(*Subject)) Subject { x := user; f(&x); return x }

func TestConditions(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    Rule
		f    Finding
		s    Subject
		want bool
		why  string
	}{
		{"none", Rule{}, found, user, true, "no conditions"},
		{"signature", Rule{Signatures: globs(t, "win.trojan.*")}, found, user, true, `signature "Win.Trojan.Agent-1" matches "win.trojan.*"`},
		{"another signature", Rule{Signatures: globs(t, "Win.Worm.*", "Win.Trojan")}, found, user, false, `does not match "Win.Worm.*", "Win.Trojan"`},
		{"many signatures", Rule{Signatures: globs(t, "a", "b", "c", "d", "e")}, found, user, false, `"a", "b", "c", 2 more`},
		{"a kind that nobody asked for", Rule{}, finding(func(f *Finding) { f.Kind = KindModified }), user, false,
			"its kind is modified, which a rule must name"},
		{"a kind by name", Rule{Kinds: []string{KindModified}}, finding(func(f *Finding) { f.Kind = KindModified }), user, true, "kind is modified"},
		{"another kind", Rule{Kinds: []string{KindModified}}, found, user, false, "kind is signature"},
		{"process", Rule{Processes: globs(t, "MALWARE.EXE")}, found, user, true, ""},
		{"process by the end of its path", Rule{Processes: globs(t, "averylongname*.exe")}, found,
			subject(func(s *Subject) {
				s.Name = "averylongname12"
				s.Path = `\Device\HarddiskVolume2\averylongname12345.exe`
			}), true, ""},
		{"another process", Rule{Processes: globs(t, "svchost.exe")}, found, user, false, `process "malware.exe" does not match`},
		{"path without its volume", Rule{Paths: globs(t, `\Users\*\AppData\**`)}, found, user, true, ""},
		{"path with its volume", Rule{Paths: globs(t, `\device\harddiskvolume2\users\**`)}, found, user, true, ""},
		{"a star is no backslash", Rule{Paths: globs(t, `\Users\*`)}, found, user, false, "path"},
		{"path of the image", Rule{Images: globs(t, `\Users\**\evil.dll`)}, found, user, true, ""},
		{"no path", Rule{Paths: globs(t, `\**`)}, found, subject(func(s *Subject) { s.Path = "" }), false, "its path is not known"},
		{"parent", Rule{Parents: globs(t, "explorer.exe")}, found, user, true, ""},
		{"parent by path", Rule{Parents: globs(t, `\Windows\explorer.exe`)}, found, user, true, ""},
		{"another parent", Rule{Parents: globs(t, "winword.exe")}, found, user, false, "parent"},
		{"no parent", Rule{Parents: globs(t, "*")}, found, subject(func(s *Subject) { s.Parent, s.ParentPath = "", "" }), false, "its parent is not known"},
		{"domain", Rule{Domains: globs(t, "WIN*")}, found, user, true, ""},
		{"another domain", Rule{Domains: globs(t, "prod-??")}, found, user, false, "domain"},
		{"hash", Rule{Hashes: hashesOf(t, sumA)}, found, user, true, "one of"},
		{"hash of the cached file", Rule{Hashes: hashesOf(t, sumB)}, found, user, true, "one of"},
		{"another hash", Rule{Hashes: hashesOf(t, strings.Repeat("0", 64))}, found, user, false, "none of"},
		{"session", Rule{Sessions: &Sessions{IDs: []int32{0, 1}}}, found, user, true, ""},
		{"another session", Rule{Sessions: &Sessions{IDs: []int32{0, 2}}}, found, user, false, "session is 1"},
		{"a user's session", Rule{Sessions: &Sessions{User: true}}, found, user, true, ""},
		{"no user's session", Rule{Sessions: &Sessions{User: true}}, found, subject(func(s *Subject) { s.Session = 0 }), false, "session is 0"},
		{"no session", Rule{Sessions: &Sessions{User: true, IDs: []int32{0}}}, found, subject(func(s *Subject) { s.Session = -1 }), false, "session is none"},
		{"exact profile", Rule{Profile: ProfileExact}, found, user, true, ""},
		{"inferred profile", Rule{Profile: ProfileInferred}, found, subject(func(s *Subject) { s.Inferred = true }), true, ""},
		{"inferred, not exact", Rule{Profile: ProfileExact}, found, subject(func(s *Subject) { s.Inferred = true }), false, "profile is inferred"},
		{"file", Rule{Form: FormFile}, found, user, true, ""},
		{"memory", Rule{Form: FormMemory}, found, user, false, "form is file"},
		{"coverage", Rule{MinCoverage: 0.9}, found, user, true, ""},
		{"too little coverage", Rule{MinCoverage: 0.95}, found, user, false, "90 % of it is known, 95 %"},
		{"exact", Rule{Exact: &yes}, finding(func(f *Finding) { f.Exact = true }), user, true, ""},
		{"not exact", Rule{Exact: &yes}, found, user, false, "not exact"},
		{"guarded", Rule{Guarded: &yes}, found, subject(func(s *Subject) { s.Critical = true }), true, "critical"},
		{"not guarded", Rule{Guarded: &yes}, found, user, false, "nothing guards"},
		{"all at once", Rule{Signatures: globs(t, "*"), Processes: globs(t, "*"), Sessions: &Sessions{User: true}, Guarded: &no}, found, user, true,
			`process "malware.exe" matches "*", its session is 1, nothing guards its process`},
		{"the first that fails is named", Rule{Processes: globs(t, "x"), Domains: globs(t, "y")}, found, user, false, "process"},
	} {
		ok, why := tt.r.match(tt.f, tt.s)
		if text := strings.Join(why, ", "); ok != tt.want || !strings.Contains(text, tt.why) || len(why) == 0 || !ok && len(why) != 1 {
			t.Errorf("%s: %v because of %q, want %v because of %q", tt.name, ok, why, tt.want, tt.why)
		}
	}
}

func TestDecide(t *testing.T) {
	kill := Always(Kill)
	policy := Policy{
		Allow: Allow{Hashes: hashesOf(t, strings.Repeat("c3", 32)), Paths: globs(t, `\Program Files\Good\**`)},
		Rules: []Rule{
			{Name: "test files", Signatures: globs(t, "*.Test.*"), Action: Report},
			{Name: "guarded", Guarded: &yes, Action: Suspend, Evidence: true, Notify: true},
			{Name: "modified", Kinds: []string{KindModified}, Action: Hold},
			{Name: "users", Sessions: &Sessions{User: true}, Action: Kill, Evidence: true},
			{Name: "services", Action: Hold, Notify: true},
		}}
	critical := subject(func(s *Subject) { s.Critical = true })
	for _, tt := range []struct {
		name string
		p    Policy
		f    Finding
		s    Subject
		want Verdict // Reason: a part of it
	}{
		{"no policy", Policy{}, found, user, Verdict{Report, RuleDefault, "no rule matches", false, true}},
		{"asked for", kill, found, user, Verdict{Kill, "--action kill", "no conditions", false, true}},
		{"hidden", kill, found, subject(func(s *Subject) { s.Hidden = true }), Verdict{Kill, "--action kill", "", false, true}},
		{"critical", kill, found, critical, Verdict{Report, "--action kill", "guarded against kill: it is a critical process", false, true}},
		{"System", kill, found, subject(func(s *Subject) { s.PID = 4 }), Verdict{Report, "--action kill", "System", false, true}},
		{"name of a system process", kill, found, subject(func(s *Subject) { s.Name = "LSASS.exe" }),
			Verdict{Report, "--action kill", "system process", false, true}},
		{"exited", kill, found, subject(func(s *Subject) { s.Exited = true }), Verdict{Report, "--action kill", "exited", false, true}},
		{"driver", kill, found, subject(func(s *Subject) { s.Kernel = true }), Verdict{Report, "--action kill", "driver", false, true}},
		{"inferred", kill, found, subject(func(s *Subject) { s.Inferred = true }), Verdict{Report, "--action kill", "inferred", false, true}},
		{"no pid", kill, found, subject(func(s *Subject) { s.PID = 813 }), Verdict{Report, "--action kill", "no process id", false, true}},
		{"modified code", kill, finding(func(f *Finding) { f.Kind = KindModified }), user, Verdict{Report, RuleDefault, "no rule", false, true}},
		{"hold of a critical one", Always(Hold), found, critical, Verdict{Report, "--action hold", "guarded against hold", false, true}},
		{"suspend for a critical one", Always(Suspend), found, critical, Verdict{Suspend, "--action suspend", "", false, true}},
		{"suspend for a driver", Always(Suspend), found, Subject{Kernel: true}, Verdict{Suspend, "--action suspend", "", false, true}},
		{"suspend for the dead", Always(Suspend), found, subject(func(s *Subject) { s.Exited = true }),
			Verdict{Report, "--action suspend", "guarded against suspend: it has exited", false, true}},
		{"no action that there is", Always("destroy"), found, user, Verdict{Report, "--action destroy", "", false, true}},

		{"the first", policy, finding(func(f *Finding) { f.Signature = "Vmav.Test.Malware" }), user, Verdict{Report, "test files", "", false, false}},
		{"the second", policy, found, critical, Verdict{Suspend, "guarded", "critical", true, true}},
		{"the third", policy, finding(func(f *Finding) { f.Kind = KindModified }), user, Verdict{Hold, "modified", "", false, false}},
		{"the fourth", policy, found, user, Verdict{Kill, "users", "session is 1", true, false}},
		{"the last", policy, found, subject(func(s *Subject) { s.Session = 0 }), Verdict{Hold, "services", "", false, true}},
		{"allowed by hash", policy, finding(func(f *Finding) { f.SHA256 = strings.Repeat("C3", 32) }), user,
			Verdict{Report, RuleAllow, "SHA-256 is allowed", false, false}},
		{"allowed by path", policy, finding(func(f *Finding) { f.Image = `\program files\good\a\b.dll` }), user,
			Verdict{Report, RuleAllow, `allowed by "\\Program Files`, false, false}},
		{"a path is not for memory", policy, finding(func(f *Finding) { f.Image = `\program files\good\a\b.dll`; f.Memory = true }), user,
			Verdict{Kill, "users", "", true, false}},
		{"nothing is for changed code", policy, finding(func(f *Finding) { f.SHA256 = strings.Repeat("C3", 32); f.Kind = KindModified }), user,
			Verdict{Hold, "modified", "", false, false}},
	} {
		got := Decide(tt.p, tt.f, tt.s)
		if !strings.Contains(got.Reason, tt.want.Reason) || got.Reason == "" {
			t.Errorf("%s: because of %q, want %q", tt.name, got.Reason, tt.want.Reason)
		}
		got.Reason, tt.want.Reason = "", ""
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		steps, again := Explain(tt.p, tt.f, tt.s)
		if again.Reason = ""; again != got {
			t.Errorf("%s: explained as %+v", tt.name, again)
		}
		for i, st := range steps {
			if last := i == len(steps)-1 && got.Rule != RuleDefault; st.Matches != last || last && st.Rule != got.Rule {
				t.Errorf("%s: step %d of %d is %+v, and %q decided", tt.name, i, len(steps), st, got.Rule)
			}
		}
	}
}

// pick makes finding, subject and policy of few values, so that rules match often, and
// guards hold in all their ways.
type pick struct{ *rand.Rand }

func of[T any](p pick, all ...T) T { return all[p.Intn(len(all))] }

func (p pick) finding() Finding {
	memory := of(p, true, false)
	return Finding{Kind: of(p, KindSignature, KindSignature, KindModified, "", "x"), Signature: of(p, "Win.A", "Vmav.Modified.Code", "", "\xff"),
		SHA256: of(p, sumA, sumB, "", "zz"),
		Cached: of(p, "", sumA), Image: of(p, user.Path, "", `\SystemRoot\x.sys`), Memory: memory, Coverage: of(p, 0, 0.5, 1),
		Exact: !memory && of(p, true, false)}
}

func (p pick) subject() Subject {
	b := func() bool { return p.Intn(8) == 0 }
	return Subject{Domain: of(p, "win10", ""), PID: of(p, uint64(0), 4, 8, 812, 816, 820, 824, 828, 813, 1<<63, ^uint64(3)),
		Name: of(p, "malware.exe", "a.exe", "b.exe", "svchost.exe", "LSASS.EXE", "System", "csrss.exe", "", "registry"),
		Path: of(p, user.Path, "", `\`), Parent: of(p, "explorer.exe", ""), Session: of[int32](p, -1, 0, 1), Critical: b(), Exited: b(), Hidden: b(),
		Kernel: b(), Inferred: b()}
}

func (p pick) rule(t testing.TB) Rule {
	maybe := func(texts ...string) []Glob {
		if p.Intn(6) > 0 {
			return nil
		}
		return globs(t, of(p, texts...))
	}
	r := Rule{Name: of(p, "a", "b", ""), Signatures: maybe("*", "Win.*", "Vmav.*"), Processes: maybe("*", "lsass.exe", "mal*"), Paths: maybe(`\**`, `**`),
		Images:  maybe(`\**`),
		Parents: maybe("*"), Domains: maybe("win*"), Kinds: of(p, nil, []string{KindModified}, Kinds()),
		Profile: of(p, "", "", "", "", ProfileInferred, ProfileExact),
		Form:    of(p, "", "", "", FormFile, FormMemory), MinCoverage: of(p, 0, 0, 0, 0.5), Exact: of(p, nil, nil, nil, nil, &yes, &no),
		Guarded: of(p, nil, nil, nil, nil, &yes, &no),
		Action:  of(p, Report, Kill, Kill, Hold, Hold, Suspend, "", "KILL", "nonsense"), Evidence: of(p, true, false), Notify: of(p, true, false)}
	if p.Intn(4) == 0 {
		r.Hashes = hashesOf(t, of(p, sumA, sumB))
	}
	if p.Intn(4) == 0 {
		r.Sessions = &Sessions{IDs: of(p, nil, []int32{0}, []int32{-1}), User: of(p, true, false)}
	}
	return r
}

func (p pick) policy(t testing.TB) Policy {
	out := Policy{DryRun: of(p, true, false), Surrogates: of(p, nil, DefaultSurrogates())}
	if p.Intn(4) == 0 {
		out.Allow = Allow{Hashes: hashesOf(t, sumB), Paths: globs(t, `\Users\**`)}
	}
	for range p.Intn(6) {
		out.Rules = append(out.Rules, p.rule(t))
	}
	return out
}

// Whatever the rules, their order and the input: what is guarded is never killed or
// held, what has exited is never suspended for, no action comes of nothing, and the
// order of a policy's rules changes nothing about that.
func TestGuardsHold(t *testing.T) {
	p := pick{rand.New(rand.NewSource(1))}
	acted := make(map[Action]int)
	guarded := 0
	for range 50000 {
		policy, f, s := p.policy(t), p.finding(), p.subject()
		// Said anew here, and not asked of the package.
		untouchable := s.Kernel || s.Critical || s.Exited || s.Inferred || s.PID == 0 || s.PID == 4 || s.PID%4 != 0
		for _, name := range []string{"lsass.exe", "csrss.exe", "system", "registry"} {
			untouchable = untouchable || strings.EqualFold(s.Name, name)
		}
		for range 3 {
			p.Shuffle(len(policy.Rules), func(i, j int) { policy.Rules[i], policy.Rules[j] = policy.Rules[j], policy.Rules[i] })
			v := Decide(policy, f, s)
			acted[v.Action]++
			if strings.Contains(v.Reason, "guarded against") {
				guarded++
			}
			asked := false
			for _, r := range policy.Rules {
				asked = asked || r.Action == v.Action
			}
			switch {
			case untouchable && (v.Action == Kill || v.Action == Hold):
				t.Fatalf("%s of %+v by %+v", v.Action, s, policy)
			case v.Action == Suspend && s.Exited && !s.Kernel:
				t.Fatalf("suspended for %+v by %+v", s, policy)
			case v.Action != Report && !asked:
				t.Fatalf("%s comes of no rule of %+v", v.Action, policy)
			case v.Rule == "" && v.Reason == "":
				t.Fatalf("nobody can tell why: %+v", v)
			}
			if _, again := Explain(policy, f, s); again != v {
				t.Fatalf("decided %+v, explained %+v", v, again)
			}
		}
	}
	for _, a := range Actions() {
		if acted[Action(a)] < 1000 {
			t.Errorf("%d verdicts of %s: the test hardly looks there", acted[Action(a)], a)
		}
	}
	if guarded < 1000 || len(acted) != len(Actions()) {
		t.Errorf("%d guarded; verdicts: %v", guarded, acted)
	}
}

// A rule that is said never to be reached never decides.
func TestUnreachedIsTrue(t *testing.T) {
	p := pick{rand.New(rand.NewSource(2))}
	said := 0
	for range 8000 {
		policy := p.policy(t)
		for i := range policy.Rules {
			policy.Rules[i].Name = string(rune('A' + i))
		}
		for i, why := range policy.Unreached() {
			said++
			for range 20 {
				f, s := p.finding(), p.subject()
				v := Decide(policy, f, s)
				if v.Rule == policy.Rules[i].Name && (v.Action != Report || !strings.HasPrefix(why, "never acts")) {
					// A kind that nothing finds could carry the other's signature.
					if strings.Contains(why, modifiedPrefix) {
						continue
					}
					t.Fatalf("rule %d of %+v is %q, and decided %+v of %+v, %+v", i, policy, why, v, f, s)
				}
			}
		}
	}
	if said < 1000 {
		t.Errorf("%d rules were said to be unreached: the test hardly looks", said)
	}
}

func TestUnreached(t *testing.T) {
	allow := Allow{Hashes: hashesOf(t, sumA)}
	for _, tt := range []struct {
		name  string
		a, b  Rule
		about string // of b; "" for reached
	}{
		{"all before one", Rule{}, Rule{Processes: globs(t, "x")}, `never reached: rule "A"`},
		{"one before all", Rule{Processes: globs(t, "x")}, Rule{}, ""},
		{"a prefix", Rule{Signatures: globs(t, "Win.*")}, Rule{Signatures: globs(t, "win.trojan.*", "Win.X")}, "never reached"},
		{"a prefix of some", Rule{Signatures: globs(t, "Win.*")}, Rule{Signatures: globs(t, "Win.X", "Unix.X")}, ""},
		{"paths", Rule{Paths: globs(t, `\Users\**`)}, Rule{Paths: globs(t, `\Users\*\x.exe`)}, "never reached"},
		{"paths, one level", Rule{Paths: globs(t, `\Users\*`)}, Rule{Paths: globs(t, `\Users\*\x.exe`)}, ""},
		{"paths of a volume", Rule{Paths: globs(t, `\Users\**`)}, Rule{Paths: globs(t, `\Device\HarddiskVolume1\Users\x`)}, ""},
		{"kinds", Rule{}, Rule{Kinds: []string{KindModified}}, ""},
		{"kinds, all", Rule{Kinds: Kinds()}, Rule{Kinds: []string{KindModified}}, "never reached"},
		{"sessions", Rule{Sessions: &Sessions{User: true}}, Rule{Sessions: &Sessions{IDs: []int32{1, 2}}}, "never reached"},
		{"session 0", Rule{Sessions: &Sessions{User: true}}, Rule{Sessions: &Sessions{IDs: []int32{0, 2}}}, ""},
		{"coverage", Rule{MinCoverage: 0.5}, Rule{MinCoverage: 0.6}, "never reached"},
		{"less coverage", Rule{MinCoverage: 0.5}, Rule{}, ""},
		{"exact", Rule{Exact: &yes}, Rule{Exact: &no}, ""},
		{"hashes", Rule{Hashes: hashesOf(t, sumB)}, Rule{Hashes: hashesOf(t, sumB), Domains: globs(t, "x")}, "never reached"},
		{"allowed hashes", Rule{Processes: globs(t, "x")}, Rule{Hashes: hashesOf(t, sumA)}, "hashes are allowed"},
		{"exact memory", Rule{Processes: globs(t, "x")}, Rule{Form: FormMemory, Exact: &yes}, "never matches"},
		{"a signature of a kind not named", Rule{Processes: globs(t, "x")}, Rule{Signatures: globs(t, "Vmav.Modified.*")}, "never matches"},
		{"a guarded kill", Rule{Processes: globs(t, "x")}, Rule{Processes: globs(t, "lsass.exe", "CSRSS.exe"), Action: Kill}, "never acts"},
		{"half a guarded kill", Rule{Processes: globs(t, "x")}, Rule{Processes: globs(t, "lsass.exe", "y"), Action: Kill}, ""},
		{"suspend for the guarded", Rule{Processes: globs(t, "x")}, Rule{Guarded: &yes, Action: Suspend}, ""},
		{"hold of the guarded", Rule{Processes: globs(t, "x")}, Rule{Guarded: &yes, Action: Hold}, "never acts"},
		{"kill with an inferred profile", Rule{Processes: globs(t, "x")}, Rule{Profile: ProfileInferred, Action: Kill}, "never acts"},
	} {
		tt.a.Name, tt.b.Name = "A", "B"
		got := Policy{Allow: allow, Rules: []Rule{tt.a, tt.b}}.Unreached()[1]
		if (got == "") != (tt.about == "") || !strings.Contains(got, tt.about) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.about)
		}
	}
}

func TestPageInLeavesAlone(t *testing.T) {
	user := Subject{PID: 812, Name: "notepad.exe"}
	if why := PageIn(user); why != "" {
		t.Errorf("an ordinary process: %s", why)
	}
	for _, s := range []Subject{{PID: 812, Name: "a.exe", Hidden: true}, {PID: 812, Name: "a.exe", Critical: true}, {PID: 812, Name: "LSASS.EXE"},
		{PID: 812, Name: "a.exe", Exited: true}, {PID: 4, Name: "System"}, {PID: 812, Name: "a.exe", Inferred: true}, {Kernel: true}} {
		if PageIn(s) == "" {
			t.Errorf("%+v may be asked for pages", s)
		}
	}
}
