package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// diskChild tells the test binary to be the child of TestFullDisk.
const diskChild = "VMAV_TEST_DISK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(diskChild); dir != "" {
		if err := fillDisk(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// only fails where a directory has other names in it than these.
func only(dir string, want ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("in %s are %v, want %v", dir, got, want)
	}
	return nil
}

func TestWriteReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for i, mode := range []fs.FileMode{0o644, 0o400, 0o755, 0o600} {
		want := fmt.Sprintf("content %d", i)
		if err := WriteBytes(path, mode, []byte(want)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		st, serr := os.Stat(path)
		if err = errors.Join(err, serr); err != nil || string(got) != want || st.Mode() != mode {
			t.Errorf("%q, %v, %v; want %q, %v", got, st.Mode(), err, want, mode)
		}
	}
	if err := only(filepath.Dir(path), "file"); err != nil {
		t.Error(err)
	}
}

// Until Commit a reader has the old file.
func TestTheOldFileStaysUntilCommit(t *testing.T) {
	dir, stage := t.TempDir(), ""
	stage = filepath.Join(dir, "stage")
	path := filepath.Join(dir, "file")
	if err := errors.Join(os.Mkdir(stage, 0o700), os.WriteFile(path, []byte("old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	f, err := Create(path, stage, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "new"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("before Commit: %q, %v", got, err)
	}
	if entries, err := os.ReadDir(stage); err != nil || len(entries) != 1 {
		t.Errorf("the file does not wait in %s: %v, %v", stage, entries, err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 3 {
		t.Errorf("Stat: %v, %v", st, err)
	}
	if err := errors.Join(f.Sync(), f.Commit()); err != nil {
		t.Fatal(err)
	}
	f.Discard()
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("after Commit: %q, %v", got, err)
	}
	if err := only(stage); err != nil {
		t.Error(err)
	}
}

func TestErrorsNameTheFileAndLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("the encoder is broken")
	taken := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(taken, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		fill       func(io.Writer) error
		is         error
		want       string
	}{
		{"no directory", filepath.Join(dir, "none", "file"), nil, fs.ErrNotExist,
			"create " + filepath.Join(dir, "none", "file") + ": no such file or directory"},
		{"a directory has the name", taken, nil, fs.ErrExist, "rename " + taken + ": file exists"},
		{"who fills it fails", filepath.Join(dir, "file"), func(w io.Writer) error {
			_, err := io.WriteString(w, "half")
			return errors.Join(err, broken)
		}, broken, "write " + filepath.Join(dir, "file") + ": the encoder is broken"},
	} {
		fill := tt.fill
		if fill == nil {
			fill = func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err }
		}
		err := Write(tt.path, 0o600, fill)
		if !errors.Is(err, tt.is) || err.Error() != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
		if err := only(dir, "taken"); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// fillDisk writes more than a file system takes, and checks what is said and left.
func fillDisk(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		return err
	}
	path := filepath.Join(dir, "file")
	if err := WriteBytes(path, 0o600, []byte("old")); err != nil {
		return err
	}
	for i, fill := range []func(io.Writer) error{
		func(w io.Writer) error { _, err := w.Write(make([]byte, 1<<20)); return err },
		func(w io.Writer) error {
			if _, err := io.CopyN(w, bytes.NewReader(make([]byte, 1<<20)), 1<<20); err != nil {
				return fmt.Errorf("copy: %w", err)
			}
			return nil
		},
	} {
		err := Write(path, 0o600, fill)
		if !errors.Is(err, unix.ENOSPC) || !strings.HasSuffix(err.Error(), "write "+path+": no space left on device") {
			return fmt.Errorf("%d: %w", i, err)
		}
		if err := only(dir, "file"); err != nil {
			return err
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
			return fmt.Errorf("%d: the old file is %q, %w", i, got, err)
		}
	}
	return nil
}

func TestFullDisk(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), diskChild+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
