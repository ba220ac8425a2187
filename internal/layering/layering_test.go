package layering

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "vmav.dev/vmav/"

// layers says which packages of the project each package tree may import; a tree
// may always import itself. Test files are free. The table is the one of
// docs/ARCHITECTURE.md; a tree that is not named here fails the test.
var layers = map[string][]string{
	"cmd/vmav":            {"internal/escape", "internal/report", "internal/cache", "internal/clam", "internal/config", "internal/domain", "internal/evidence", "internal/history", "internal/hook", "internal/introspect", "internal/checkpoint", "internal/kill", "internal/lock", "internal/notify", "internal/pagein", "internal/pe", "internal/policy", "internal/ready", "internal/finding", "internal/source", "internal/sweep", "internal/tomlfile", "internal/verdict", "internal/watch", "internal/winstruct", "internal/worker"},
	"internal/worker":     {"internal/clam", "internal/introspect", "internal/pagein", "internal/pe", "internal/finding", "internal/source", "internal/sweep", "internal/verdict", "internal/winstruct"},
	"internal/sweep":      {"internal/clam", "internal/introspect", "internal/kill", "internal/pagein", "internal/pe", "internal/finding", "internal/source", "internal/verdict", "internal/winstruct"},
	"internal/ready":      {"internal/clam", "internal/config", "internal/domain", "internal/policy", "internal/source", "internal/winstruct"},
	"internal/watch":      {"internal/clam", "internal/domain", "internal/introspect", "internal/kill", "internal/lock", "internal/finding", "internal/source", "internal/sweep", "internal/verdict", "internal/winstruct"},
	"internal/hook":       {"internal/watch"},
	"internal/checkpoint": {"internal/finding"},
	"internal/lock":       {},
	"internal/kill":       {"internal/introspect", "internal/pe", "internal/finding", "internal/source", "internal/verdict"},
	"internal/history":    {"internal/finding", "internal/verdict"},
	"internal/evidence":   {},
	"internal/pagein":     {"internal/introspect", "internal/source"},
	"internal/introspect": {"internal/source", "internal/winstruct"},
	"internal/domain":     {"internal/source"},
	"internal/escape":     {},
	"internal/finding":    {"internal/verdict"},
	"internal/report":     {"internal/escape", "internal/finding"},
	"internal/source":     {},
	"internal/winstruct":  {},
	"internal/pe":         {},
	"internal/clam":       {},
	"internal/cache":      {},
	"internal/verdict":    {},
	"internal/policy":     {"internal/tomlfile", "internal/verdict"},
	"internal/config":     {"internal/tomlfile"},
	"internal/notify":     {"internal/config", "internal/escape", "internal/finding", "internal/verdict"},
	"internal/tomlfile":   {},
	"internal/ntguest":    {"internal/winstruct"},
	"internal/layering":   {},
	"internal/e2e":        {"internal/domain", "internal/watch"}, // its harness, which no other tree may import
}

func tree(pkg string) string {
	for t := range layers {
		if pkg == t || strings.HasPrefix(pkg, t+"/") {
			return t
		}
	}
	return ""
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
	seen := 0
	sources(t, func(pkg, file string, _ *token.FileSet, f *ast.File) {
		seen++
		from := tree(pkg)
		if from == "" {
			t.Errorf("%s: package %s is in no layer; name it in the table of this test and of docs/ARCHITECTURE.md", file, pkg)
			return
		}
		for _, imp := range f.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			rel, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			to := tree(rel)
			if to != from && !slices.Contains(layers[from], to) {
				t.Errorf("%s imports %s: %s may import only %v", file, rel, from, layers[from])
			}
		}
	})
	if seen == 0 {
		t.Fatal("no source file found: the test looks in the wrong place")
	}
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
		if tree(pkg) == "internal/source" || pkg == "internal/worker/sandbox" { // which names calls to refuse them
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
