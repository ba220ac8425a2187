package introspect_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source/image"
	"vmav.dev/vmav/internal/winstruct"
)

// The memory of a guest lies in a file. Its kernel is found there, with the profile of its
// build, and then its processes. One of them has left the kernel's list.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "guest.raw")
	machine, err := ntguest.Lay(ntguest.Options{Build: "10.0.19041", Seed: 1, Hide: "malware.exe"})
	if err == nil {
		err = machine.Save(path)
	}
	if err != nil {
		log.Fatal(err)
	}

	memory, err := image.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer memory.Close()
	ctx := context.Background()
	guest, err := introspect.Open(ctx, memory, winstruct.BuiltIn())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("Windows", guest.Kernel().Version)
	processes, problems, err := guest.Processes(ctx)
	if err != nil || len(problems) > 0 {
		log.Fatal(err, problems)
	}
	for _, p := range processes {
		if p.Name == "System" || p.Name == "malware.exe" {
			fmt.Println(p.PID, p.Name, p.Flags)
		}
	}
	// Output:
	// Windows 10.0.19041
	// 4 System [protected]
	// 2772 malware.exe [hidden]
}
