// Package config reads vmav.toml, which has an operator's settings for the service, the
// sweeps and the commands. It refuses a file that it does not understand in full, and
// names the line and the key of everything that is wrong.
//
// The package also knows where things are by default. It reads that one file and opens
// nothing that the file names. It imports nothing of the project but tomlfile.
package config
