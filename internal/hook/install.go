package hook

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmav.dev/vmav/internal/atomicfile"
)

// DefaultDirectory is where libvirt's system daemon looks for hooks.
const DefaultDirectory = "/etc/libvirt/hooks"

// marker tells our script from the scripts of others.
const marker = "# Installed by vmav hook install; vmav hook remove takes it away."

// script is what libvirt runs. It always succeeds, whatever the program does. It does
// not wait for the program, because starting the program takes longer than everything
// else. The event may come a moment later: until the hook is done, libvirt does not
// answer for the domain anyway.
const script = `#!/bin/sh
` + marker + `
# libvirt waits for this, takes what it prints for the domain's XML and its failure for a
# veto: it prints nothing and always succeeds.
exec >/dev/null 2>&1
%scase "$2" in
started | attach) [ -x %[2]s ] && %[2]s hook run "$@" </dev/null & ;;
esac
cat
exit 0
`

// Path returns the path of our script in a hook directory. It lies beside the scripts of
// others. libvirt runs the script qemu first, and then those in qemu.d in the order of
// their names.
func Path(dir string) string { return filepath.Join(dir, "qemu.d", "vmav") }

// Install puts the hook into libvirt's hook directory. program is the absolute path of
// vmav. environment has the variables that vmav gets. Install never replaces a file of
// somebody else.
func Install(dir, program string, environment map[string]string) error {
	if !filepath.IsAbs(program) {
		return fmt.Errorf("install the hook: the program's path %q is not absolute", program)
	}
	path := Path(dir)
	if err := ours(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("install the hook: %w", err)
	}
	var env strings.Builder
	var names []string
	for name := range environment {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&env, "export %s=%s\n", name, quote(environment[name]))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	// Until the script is whole it lies outside of qemu.d, because libvirt runs what it
	// finds there.
	f, err := atomicfile.Create(path, dir, 0o755)
	if err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	defer f.Discard()
	if _, err = fmt.Fprintf(f, script, env.String(), quote(program)); err == nil {
		err = f.Commit()
	}
	if err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	return nil
}

// Remove removes the hook from a hook directory, and the directory qemu.d if it is empty
// then. It is no error if there is no hook.
func Remove(dir string) error {
	path := Path(dir)
	err := ours(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("remove the hook: %w", err)
	}
	_ = os.Remove(filepath.Dir(path)) // fails if there are scripts of others
	return nil
}

// ours returns an error if a file is not our script.
func ours(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte(marker)) {
		return fmt.Errorf("%s is not vmav's", path)
	}
	return nil
}

// quote returns s as one word for the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
