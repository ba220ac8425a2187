package layering

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "vmav.dev/vmav/"

// layers says which packages of the project each package tree may import; a tree may
// always import itself. The longest name that a package begins with counts. Test files
// are free. The table is the one of docs/ARCHITECTURE.md; a package that is in no tree
// fails the test.
var layers = map[string][]string{
	"cmd/vmav": {"internal/atomicfile", "internal/cache", "internal/clam", "internal/config", "internal/domain", "internal/escape", "internal/evidence",
		"internal/finding", "internal/history", "internal/hook", "internal/introspect", "internal/kill", "internal/lock", "internal/notify", "internal/pagein",
		"internal/pe", "internal/policy", "internal/ready", "internal/report", "internal/respond", "internal/scan", "internal/source",
		"internal/sweep", "internal/tomlfile", "internal/verdict", "internal/watch", "internal/winstruct", "internal/worker/broker",
		"internal/worker/inside"},

	// What both halves speak.
	"internal/finding": {"internal/verdict"},
	"internal/verdict": {},
	"internal/escape":  {},
	"internal/subject": {"internal/introspect", "internal/verdict"},

	// The half that looks, in this process or in one without rights.
	"internal/scan": {"internal/clam/answer", "internal/finding", "internal/introspect", "internal/pagein", "internal/pe", "internal/source",
		"internal/subject", "internal/verdict", "internal/winstruct"},
	"internal/worker": {},
	"internal/worker/wire": {"internal/clam/answer", "internal/finding", "internal/introspect", "internal/pe", "internal/scan", "internal/source",
		"internal/winstruct"},
	"internal/worker/inside": {"internal/clam/answer", "internal/finding", "internal/introspect", "internal/scan", "internal/source",
		"internal/winstruct", "internal/worker/confine", "internal/worker/wire"},
	"internal/worker/confine": {},
	"internal/worker/broker": {"internal/clam/answer", "internal/finding", "internal/introspect", "internal/pagein", "internal/scan", "internal/source",
		"internal/winstruct", "internal/worker/wire"},
	"internal/pagein":      {"internal/introspect", "internal/source"},
	"internal/introspect":  {"internal/source", "internal/winstruct"},
	"internal/domain":      {"internal/source"},
	"internal/source":      {},
	"internal/winstruct":   {},
	"internal/pe":          {},
	"internal/clam":        {"internal/clam/answer"},
	"internal/clam/answer": {},
	"internal/cache":       {},

	// The half that acts.
	"internal/respond": {"internal/evidence", "internal/finding", "internal/history", "internal/introspect", "internal/kill", "internal/lock",
		"internal/notify", "internal/scan", "internal/verdict", "internal/winstruct"},
	"internal/kill":     {"internal/finding", "internal/introspect", "internal/pe", "internal/source", "internal/subject", "internal/verdict"},
	"internal/history":  {"internal/atomicfile", "internal/finding", "internal/verdict"},
	"internal/evidence": {"internal/atomicfile"},
	"internal/notify":   {"internal/atomicfile", "internal/config", "internal/escape", "internal/finding", "internal/verdict"},
	"internal/report":   {"internal/escape", "internal/finding"},
	"internal/policy":   {"internal/tomlfile", "internal/verdict"},

	// What drives them.
	"internal/watch": {"internal/clam", "internal/domain", "internal/finding", "internal/introspect", "internal/kill", "internal/lock",
		"internal/respond", "internal/scan", "internal/source", "internal/subject", "internal/verdict", "internal/winstruct"},
	"internal/sweep":      {"internal/finding", "internal/lock"},
	"internal/hook":       {"internal/atomicfile", "internal/watch"},
	"internal/ready":      {"internal/clam", "internal/config", "internal/domain", "internal/policy", "internal/source", "internal/winstruct"},
	"internal/config":     {"internal/tomlfile"},
	"internal/tomlfile":   {},
	"internal/lock":       {},
	"internal/atomicfile": {},

	// Tests.
	"internal/ntguest": {"internal/winstruct"},
	"internal/scan/scantest": {"internal/clam", "internal/clam/answer", "internal/finding", "internal/introspect", "internal/ntguest", "internal/scan",
		"internal/source",
		"internal/subject", "internal/winstruct"},
	"internal/layering": {},
	"internal/e2e":      {"internal/domain", "internal/watch"}, // its harness, which no other tree may import
}

func tree(pkg string) (longest string) {
	for t := range layers {
		if len(t) > len(longest) && (pkg == t || strings.HasPrefix(pkg, t+"/")) {
			longest = t
		}
	}
	return longest
}

// closed are trees that must not reach others, not even through what they import.
var closed = map[string][]string{
	"internal/scan": {"internal/respond", "internal/kill", "internal/policy", "internal/history", "internal/evidence", "internal/notify",
		"internal/report"},
	"internal/worker/inside": {"internal/respond", "internal/kill", "internal/policy", "internal/history", "internal/evidence", "internal/notify",
		"internal/report", "internal/domain", "internal/worker/broker"},
	"internal/worker/confine": {"internal/respond", "internal/kill", "internal/domain", "internal/worker/broker"},
	"internal/finding":        {"internal/source", "internal/introspect"},
}

// powerless are packages without rights. They must not use what has any: commands, the
// network and libvirt, nor the packages of the project that open guests or servers. So of a
// tree that they may import, only the package at its root is meant, and the packages that
// are named here.
var powerless = map[string][]string{
	"internal/worker/inside":  {"internal/source/window"},
	"internal/worker/wire":    {},
	"internal/worker/confine": {},
}

// powers are the packages of the standard library and of others that have rights, each with
// the packages below it.
var powers = []string{"os/exec", "os/user", "net", "plugin", "libvirt.org/go/libvirt"}

// hasPower reports whether a package is one of powers or below one.
func hasPower(path string) bool {
	return slices.ContainsFunc(powers, func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") })
}

// writers is who may import the package that writes reports.
var writers = []string{"cmd/vmav", "internal/respond"}

// imports are the packages that each package of the module imports, beside its tests.
type imports map[string][]string

// mistakes lists what is wrong with imports, one line each.
func (all imports) mistakes() (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, pkg := range slices.Sorted(maps.Keys(all)) {
		from := tree(pkg)
		if from == "" {
			say("package %s is in no layer; name it in the table of this test and of docs/ARCHITECTURE.md", pkg)
			continue
		}
		for _, path := range all[pkg] {
			below, none := powerless[from]
			if none && hasPower(path) {
				say("%s imports %s: it is to have no such rights", pkg, path)
			}
			rel, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			to := tree(rel)
			if none && rel != to && !slices.Contains(below, rel) {
				say("%s imports %s: of %s it may import only the package at the root, and %v", pkg, rel, to, below)
			}
			if to != from && !slices.Contains(layers[from], to) {
				say("%s imports %s: %s may import only %v", pkg, rel, from, layers[from])
			}
			if to == "internal/report" && from != to && !slices.Contains(writers, from) {
				say("%s imports %s: only %v write reports", pkg, rel, writers)
			}
		}
		_, none := powerless[from]
		for _, reached := range all.closure(pkg) {
			for _, path := range all[reached] {
				if none && hasPower(path) {
					say("%s reaches %s, which imports %s: it is to have no such rights", pkg, reached, path)
				}
			}
			if slices.Contains(closed[from], tree(reached)) {
				say("%s reaches %s by what it imports", pkg, reached)
			}
		}
	}
	return out
}

// closure are the packages of the module that a package imports, and those these import.
func (all imports) closure(pkg string) []string {
	seen := map[string]bool{}
	var add func(string)
	add = func(p string) {
		for _, path := range all[p] {
			if rel, ours := strings.CutPrefix(path, module); ours && !seen[rel] {
				seen[rel] = true
				add(rel)
			}
		}
	}
	add(pkg)
	return slices.Sorted(maps.Keys(seen))
}

func read(t *testing.T) imports {
	t.Helper()
	all := imports{}
	sources(t, func(pkg, _ string, _ *token.FileSet, f *ast.File) {
		all[pkg] = append(all[pkg], "")
		for _, imp := range f.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			all[pkg] = append(all[pkg], path)
		}
	})
	if len(all) < 20 {
		t.Fatalf("%d packages found: the test looks in the wrong place", len(all))
	}
	return all
}

// sources calls f for every non-test Go file of the module.
func sources(t *testing.T, f func(pkg, file string, fset *token.FileSet, ast *ast.File)) {
	t.Helper()
	root := "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if base := d.Name(); rel != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin" || base == "build") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		f(filepath.ToSlash(filepath.Dir(rel)), rel, fset, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportsStayInTheirLayer(t *testing.T) {
	for _, m := range read(t).mistakes() {
		t.Error(m)
	}
}

// An import that crosses the table is noticed: each of the rules, by an import that is added.
func TestAnImportThatCrossesIsNoticed(t *testing.T) {
	today := read(t)
	clean := len(today.mistakes())
	try := func(pkg, path string) {
		all := maps.Clone(today)
		all[pkg] = append(slices.Clone(all[pkg]), path)
		if len(all.mistakes()) <= clean {
			t.Errorf("%s may import %s, and nothing says a word", pkg, path)
		}
	}
	for _, what := range []string{"respond", "kill", "policy", "history", "evidence", "notify", "report"} {
		try("internal/scan", module+"internal/"+what)
		try("internal/worker/inside", module+"internal/"+what)
		// Nor in a roundabout way.
		try("internal/introspect", module+"internal/"+what)
	}
	for _, path := range []string{"os/exec", "os/user", "net", "net/http", "libvirt.org/go/libvirt", module + "internal/worker/broker",
		module + "internal/domain", module + "internal/source/memhook", module + "internal/source/qemu", module + "internal/winstruct/symsrv"} {
		try("internal/worker/inside", path)
		try("internal/worker/wire", path)
	}
	for pkg := range today {
		if from := tree(pkg); from != "internal/report" && !slices.Contains(writers, from) {
			try(pkg, module+"internal/report")
		}
	}
	for _, pkg := range []string{"internal/pe", "internal/winstruct", "internal/verdict", "internal/clam"} {
		try(pkg, module+"internal/finding")
	}
	// What the worker reaches has no rights either.
	try("internal/scan", "net/http")
	try("internal/introspect", "os/exec")
	try("internal/scan", module+"internal/clam")
	try("internal/worker/wire", module+"internal/worker/inside")
	try("internal/somewhere", "fmt")
}

// foreign are the calls that reach the memory of another process, a device or a
// mapping; only internal/source may make them.
var foreign = map[string]bool{
	"Mmap": true, "MmapPtr": true, "ProcessVMReadv": true, "ProcessVMWritev": true,
	"PidfdGetfd": true, "SYS_IOCTL": true, "SYS_MMAP": true, "SYS_PROCESS_VM_READV": true,
	"IoctlSetInt": true, "PtraceAttach": true,
}

func TestOnlySourceTouchesForeignMemory(t *testing.T) {
	sources(t, func(pkg, file string, fset *token.FileSet, f *ast.File) {
		if tree(pkg) == "internal/source" || pkg == "internal/worker/confine" { // which names calls to refuse them
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "unix" || x.Name == "syscall") && foreign[sel.Sel.Name] {
				t.Errorf("%s: %s.%s belongs into internal/source", fset.Position(sel.Pos()), x.Name, sel.Sel.Name)
			}
			return true
		})
	})
}

// Only commands print: a library that writes to the terminal cannot be used by a
// service.
func TestOnlyCommandsPrint(t *testing.T) {
	sources(t, func(pkg, file string, fset *token.FileSet, f *ast.File) {
		if f.Name.Name == "main" {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			name := x.Name + "." + sel.Sel.Name
			switch name {
			case "fmt.Print", "fmt.Printf", "fmt.Println", "os.Stdout", "os.Exit", "log.Fatal", "log.Fatalf", "log.Printf":
				t.Errorf("%s: %s outside a command", fset.Position(sel.Pos()), name)
			}
			return true
		})
	})
}

// What the docs say of a package or a file of the project is said of one that is there, and a
// command for some tests runs some.
func TestTheDocsNameWhatThereIs(t *testing.T) {
	named := regexp.MustCompile(`\binternal/[A-Za-z0-9_./-]*[A-Za-z0-9_]`)
	command := regexp.MustCompile(`go test \./(internal/[a-z0-9_/]+) -run '?([A-Za-z0-9|\\]+)`)
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d pages of docs, %v", len(files), err)
	}
	for _, file := range append(files, "../../README.md", "../../CONTRIBUTING.md", "../../SECURITY.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range named.FindAllString(string(text), -1) {
			if _, err := os.Stat(filepath.Join("../..", name)); err != nil {
				t.Errorf("%s: there is no %s", filepath.Base(file), name)
			}
		}
		for _, m := range command.FindAllStringSubmatch(string(text), -1) {
			tests := functions(t, filepath.Join("../..", m[1]))
			for _, name := range strings.Split(m[2], "|") {
				if name = strings.TrimSuffix(name, `\`); !slices.ContainsFunc(tests, func(f string) bool { return strings.Contains(f, name) }) {
					t.Errorf("%s: no test of %s is called %s", filepath.Base(file), m[1], name)
				}
			}
		}
	}
}

// functions are the names of the tests in a directory.
func functions(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*_test.go"))
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}
