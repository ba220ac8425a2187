// Command packgen makes the built-in profiles of vmav from a directory of
// Volatility 3 symbol files and its INDEX.tsv, which names the kernel version of
// each file:
//
//	go run ./internal/winstruct/packgen DIR internal/winstruct/builtin
//
// or, with -layouts, the layouts of 32-bit builds from the type definitions of Volatility 2:
//
//	go run ./internal/winstruct/packgen -layouts DIR internal/winstruct/layouts
//
// or, with -facts, those of 64-bit builds from hand-made profile files, each of which names
// its sources:
//
//	go run ./internal/winstruct/packgen -facts DIR internal/winstruct/layouts
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// guests are the builds that the test guest is laid out as. Introspection and Volatility 3
// read it with these facts (docs/TESTING.md).
var guests = map[string]bool{"6.1.7601.24540": true, "10.0.19041.1237": true, "10.0.22000.978": true}

func main() {
	args, make := os.Args[1:], run
	if len(args) > 0 && args[0] == "-layouts" {
		args, make = args[1:], makeLayouts
	} else if len(args) > 0 && args[0] == "-facts" {
		args, make = args[1:], packFacts
	}
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: packgen [-layouts|-facts] INPUT-DIR OUTPUT-DIR")
		os.Exit(2)
	}
	if err := make(args[0], args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "packgen:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	index, err := os.Open(filepath.Join(from, "INDEX.tsv"))
	if err != nil {
		return err
	}
	defer index.Close()
	lines := bufio.NewScanner(index)
	lines.Scan() // the header
	for lines.Scan() {
		cols := strings.Split(lines.Text(), "\t")
		if len(cols) != 5 {
			return fmt.Errorf("INDEX.tsv: line %q has %d columns", lines.Text(), len(cols))
		}
		p, err := winstruct.ImportISFFile(filepath.Join(from, cols[4]))
		if err != nil {
			return err
		}
		if p.Key() != cols[2] {
			return fmt.Errorf("%s holds %s, INDEX.tsv says %s", cols[4], p.Key(), cols[2])
		}
		p.Version = cols[0]
		verified := winstruct.VerifiedIdentity
		if guests[p.Version] {
			verified = winstruct.VerifiedGuest
		}
		p.Sources = []winstruct.Source{{Of: "all", From: "public symbols of the kernel, by way of the symbol tables for Volatility 3", Verified: verified}}
		path, err := winstruct.PutSmall(to, winstruct.Pack(p))
		if err != nil {
			return err
		}
		fmt.Println(p.Version, filepath.Base(path))
	}
	return lines.Err()
}
