package pe_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// debianPackages hold the PE files of the corpus. They are dependencies of the
// test: a package that is not installed is a failure, not a skip.
var debianPackages = []string{
	"libwine", "gcc-mingw-w64-i686-win32-runtime", "gcc-mingw-w64-x86-64-win32-runtime",
	"libz-mingw-w64", "mingw-w64-i686-dev", "mingw-w64-x86-64-dev", "clamav-testfiles",
}

// corpusFiles lists the PE files of the Debian packages, of the folder that
// testdata/pecorpus/fetch.sh fills, and of the one that VMAV_PE_CORPUS names, as
// far as they are there.
func corpusFiles(t testing.TB) []string {
	t.Helper()
	var files []string
	for _, p := range debianPackages {
		out, err := exec.Command("dpkg", "-L", p).Output()
		if err != nil {
			t.Fatalf("list files of Debian package %s: %v (install it)", p, err)
		}
		for _, f := range strings.Split(string(out), "\n") {
			if st, err := os.Lstat(f); err == nil && st.Mode().IsRegular() && isPE(f) {
				files = append(files, f)
			}
		}
	}
	for _, dir := range []string{"../../build/pecorpus", os.Getenv("VMAV_PE_CORPUS")} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		err := filepath.Walk(dir, func(path string, st os.FileInfo, err error) error {
			if err == nil && st.Mode().IsRegular() && isPE(path) {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	sort.Strings(files)
	return files
}

func isPE(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var b [2]byte
	n, _ := f.Read(b[:])
	return n == 2 && string(b[:]) == "MZ"
}
