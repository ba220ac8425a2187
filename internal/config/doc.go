// Package config is vmav.toml: what an operator sets once for the service, the sweeps
// and the commands. A file that is not understood in full is refused, with the line and
// the key of everything that is wrong with it.
//
// The package reads that one file and knows where things are by default. It opens
// nothing that it names, and imports nothing of the project but tomlfile.
package config
