package confine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is what a filter sees of a system call. The interpreter reads big endian, as
// packets are; a processor here has the halves of an argument the other way round.
func call(arch, number uint32, args ...uint64) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[dataNumber:], number)
	binary.BigEndian.PutUint32(b[dataArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(b[dataArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[dataArgs+8*i+4:], uint32(a>>32))
	}
	return b
}

func TestWhatTheFilterSays(t *testing.T) {
	const pid = 4711
	vm, err := bpf.NewVM(program(pid))
	if err != nil {
		t.Fatal(err)
	}
	const amd64, i386 = unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386
	for _, c := range []struct {
		name string
		call []byte
		want uint32
	}{
		{"read", call(amd64, unix.SYS_READ), allow},
		{"read by the 32-bit interface", call(i386, 3), kill},
		{"read by x32", call(amd64, unix.SYS_READ|x32Bit), kill},
		{"openat", call(amd64, unix.SYS_OPENAT), deny},
		{"a call of the future", call(amd64, 999), deny},
		{"execve", call(amd64, unix.SYS_EXECVE), kill},
		{"socket", call(amd64, unix.SYS_SOCKET, unix.AF_INET), kill},
		{"clone3", call(amd64, unix.SYS_CLONE3), absent},
		{"clone of C", call(amd64, unix.SYS_CLONE, cloneC), allow},
		{"clone of Go", call(amd64, unix.SYS_CLONE, cloneGo), allow},
		{"clone as fork", call(amd64, unix.SYS_CLONE, uint64(unix.SIGCHLD)), deny},
		{"clone into a namespace", call(amd64, unix.SYS_CLONE, cloneC|unix.CLONE_NEWUSER), deny},
		{"mmap", call(amd64, unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE), allow},
		{"mmap of code", call(amd64, unix.SYS_MMAP, 0, 4096, unix.PROT_EXEC, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE), deny},
		{"mmap of a file", call(amd64, unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE), deny},
		{"mprotect", call(amd64, unix.SYS_MPROTECT, 0, 4096, unix.PROT_READ), allow},
		{"mprotect to code", call(amd64, unix.SYS_MPROTECT, 0, 4096, unix.PROT_READ|unix.PROT_EXEC), deny},
		{"mprotect to code, with rubbish above", call(amd64, unix.SYS_MPROTECT, 0, 4096, 1<<40|unix.PROT_EXEC), deny},
		{"tgkill", call(amd64, unix.SYS_TGKILL, pid, 4712, 23), allow},
		{"tgkill of another", call(amd64, unix.SYS_TGKILL, 1, 1, 9), deny},
		{"tgkill of another, with rubbish above", call(amd64, unix.SYS_TGKILL, pid<<32|1, 1, 9), deny},
		{"fcntl", call(amd64, unix.SYS_FCNTL, 3, unix.F_GETFL), allow},
		{"fcntl of an owner", call(amd64, unix.SYS_FCNTL, 3, unix.F_SETOWN), deny},
	} {
		got, err := vm.Run(c.call)
		if err != nil || uint32(got) != c.want {
			t.Errorf("%s: %#x, %v, want %#x", c.name, uint32(got), err, c.want)
		}
	}
}

// No call is on both lists, or allowed without its conditions.
func TestTheListsAreApart(t *testing.T) {
	where := make(map[uint32]string)
	add := func(list string, n uint32) {
		if at, again := where[n]; again && at != list {
			t.Errorf("call %d is %s and %s", n, at, list)
		}
		where[n] = list
	}
	for _, n := range needed {
		add("needed", n)
	}
	for _, n := range deadly {
		add("deadly", n)
	}
	for _, c := range conditional(1) {
		add("conditional", c.number)
	}
	add("absent", unix.SYS_CLONE3)
}

// mode has this program put one layer of the sandbox on and try what it must not.
const mode = "VMAV_SANDBOX_TEST_ADDRESS"

func TestMain(m *testing.M) {
	if address := os.Getenv(mode); address != "" {
		fmt.Print(landlockAlone(address))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func landlockAlone(address string) string {
	abi, err := closeFiles()
	if err != nil || abi == 0 {
		return fmt.Sprintf("abi %d, %v", abi, err)
	}
	if _, err := os.ReadFile("/etc/passwd"); !errors.Is(err, unix.EACCES) {
		return fmt.Sprintf("read /etc/passwd: %v", err)
	}
	if err := os.WriteFile("/tmp/vmav-escaped", nil, 0o600); !errors.Is(err, unix.EACCES) {
		return fmt.Sprintf("create a file: %v", err)
	}
	if _, err := net.Dial("tcp", address); abi >= 4 && !errors.Is(err, unix.EACCES) {
		return fmt.Sprintf("connect: %v", err)
	}
	return "closed"
}

// Landlock closes what it can without the filter's help.
func TestLandlockAlone(t *testing.T) {
	if abi, _ := landlockABI(); abi == 0 {
		t.Skip("this kernel has no Landlock")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), mode+"="+l.Addr().String())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "closed") {
		t.Errorf("%v: %s", err, out)
	}
}
