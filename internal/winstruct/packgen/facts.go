package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vmav.dev/vmav/internal/winstruct"
)

// packFacts makes layouts from the hand-made profile files of a directory. A file whose
// name does not begin with an architecture is left out: it has single values only.
func packFacts(from, to string) error {
	files, err := filepath.Glob(filepath.Join(from, "x*.json"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s has no layouts", from)
	}
	for _, file := range files {
		if err := packFact(file, to); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func packFact(file, to string) error {
	p, err := winstruct.Open(file)
	switch {
	case err != nil:
		return err
	case p.GUID != winstruct.NoGUID:
		return errors.New("it is the profile of an image")
	case len(p.Sources) == 0 || p.Version == "":
		return errors.New("it names no version or no source")
	}
	path := filepath.Join(to, p.Arch+"-"+p.Version+".json.zst")
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := winstruct.Pack(p).SaveSmall(out); err != nil {
		return err
	}
	fmt.Println(p.Version, filepath.Base(path))
	return out.Close()
}
