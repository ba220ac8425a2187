package config

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mitchellh/go-homedir"
)

// Places of root's files. Those of an ordinary user are in the XDG directories.
const (
	systemConfig  = "/etc/vmav"
	systemState   = "/var/lib/vmav"
	systemRuntime = "/run/vmav"
)

// Names in the directory of the configuration.
const (
	configName = "vmav.toml"
	policyName = "policy.toml"
)

// directories returns where the files of this process's user are.
func directories() (config, state, runtime string, err error) {
	if os.Geteuid() == 0 {
		return systemConfig, systemState, systemRuntime, nil
	}
	home, err := homedir.Dir()
	if err != nil {
		return "", "", "", fmt.Errorf("find the home directory: %w", err)
	}
	xdg := func(name, fallback string) string {
		// The XDG base directory specification says to ignore relative paths.
		if dir := os.Getenv(name); filepath.IsAbs(dir) {
			return filepath.Join(dir, "vmav")
		}
		return filepath.Join(fallback, "vmav")
	}
	return xdg("XDG_CONFIG_HOME", filepath.Join(home, ".config")),
		xdg("XDG_STATE_HOME", filepath.Join(home, ".local/state")),
		xdg("XDG_RUNTIME_DIR", fmt.Sprintf("/run/user/%d", os.Getuid())), nil
}

// DefaultFile returns the path of vmav.toml that is used without --config.
func DefaultFile() (string, error) {
	dir, _, _, err := directories()
	return filepath.Join(dir, configName), err
}

// Default returns the settings without any file.
func Default() (Config, error) {
	dir, state, runtime, err := directories()
	if err != nil {
		return Config{}, err
	}
	return in(dir, state, runtime), nil
}

// in returns the settings without any file, with the directories given.
func in(dir, state, runtime string) Config {
	return Config{
		Source:         "auto",
		StateDirectory: state, RuntimeDirectory: runtime, Policy: filepath.Join(dir, policyName),
		Clamd: Clamd{Slots: 4},
		Watch: Watch{CPUPercent: 50, Memory: 1 << 30, Interval: day, Jitter: time.Hour, Poll: 5 * time.Millisecond,
			Domains: Domains{Include: []string{"*"}}},
		History:  History{Keep: 365 * day, MaxSize: 1 << 30},
		Evidence: Evidence{Keep: 90 * day, MaxSize: 5 << 30},
		Cache:    Cache{MaxSize: 256 << 20},
		Report:   Report{Journal: true},
	}
}

const day = 24 * time.Hour
