package ntguest

import (
	"fmt"
	"os"
	"path/filepath"
)

// winePath is where Debian's libwine keeps its x64 PE files.
const winePath = "/usr/lib/x86_64-linux-gnu/wine/x86_64-windows"

// testfilesPath is where Debian's clamav-testfiles keeps what ClamAV's own test
// signature matches.
const testfilesPath = "/usr/share/clamav-testfiles"

// assetsDir finds the guest's programs: where $NTGUEST_ASSETS says, beside the
// executable, or in the module that the working directory is in.
func assetsDir() (string, error) {
	var tried []string
	check := func(dir string) bool {
		tried = append(tried, dir)
		_, err := os.Stat(filepath.Join(dir, "rt.bin"))
		return err == nil
	}
	if dir := os.Getenv("NTGUEST_ASSETS"); dir != "" && check(dir) {
		return dir, nil
	}
	if exe, err := os.Executable(); err == nil {
		if dir := filepath.Join(filepath.Dir(exe), "ntguest.d"); check(dir) {
			return dir, nil
		}
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			if found := filepath.Join(dir, "bin", "ntguest.d"); check(found) {
				return found, nil
			}
			break
		}
		up := filepath.Dir(dir)
		if up == dir {
			break
		}
		dir = up
	}
	return "", fmt.Errorf("find the test guest's programs, which make build makes: not in %q", tried)
}
