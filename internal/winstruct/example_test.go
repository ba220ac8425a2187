package winstruct_test

import (
	"errors"
	"fmt"
	"log"

	"vmav.dev/vmav/internal/winstruct"
)

// A kernel names its PDB, GUID and age. The profile of that build says where its
// structures have what, and Compile gets what a reader needs into a plain structure.
func ExampleCompile() {
	id, err := winstruct.ParseIdentity("ntkrnlmp.pdb", "BBED7C2955FBE4522AAA23F4B8677AD91")
	if err != nil {
		log.Fatal(err)
	}
	profile, err := winstruct.BuiltIn().Find(id)
	if err != nil {
		log.Fatal(err)
	}
	var offsets struct {
		PID       uint32 `win:"_EPROCESS.UniqueProcessId"`
		Links     uint32 `win:"_EPROCESS.ActiveProcessLinks"`
		Process   uint32 `win:"sizeof(_EPROCESS)"`
		Processes uint64 `win:"sym(PsActiveProcessHead)"`
	}
	if err := winstruct.Compile(profile, &offsets); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("Windows %s: the PID is at %#x of the %#x bytes of a process, the list's links at %#x\n",
		profile.Version, offsets.PID, offsets.Process, offsets.Links)
	fmt.Printf("the list's head is at %#x of the kernel\n", offsets.Processes)
	// Output:
	// Windows 10.0.19041.329: the PID is at 0x440 of the 0xa40 bytes of a process, the list's links at 0x448
	// the list's head is at 0xc1e060 of the kernel
}

// What a build lacks is refused by name, before anything is read with it.
func ExampleMissingFactsError() {
	profile, err := winstruct.BuiltIn().Open(winstruct.BuiltIn().List()[0])
	if err != nil {
		log.Fatal(err)
	}
	var offsets struct {
		Soul uint32 `win:"_EPROCESS.Soul"`
	}
	var missing *winstruct.MissingFactsError
	if err := winstruct.Compile(profile, &offsets); errors.As(err, &missing) {
		fmt.Println("the build lacks", missing.Facts)
	}
	// Output:
	// the build lacks [_EPROCESS.Soul]
}
