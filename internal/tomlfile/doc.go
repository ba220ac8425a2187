// Package tomlfile reads TOML files strictly. A key that is unknown, has the wrong type
// or is out of its bounds is an error, which names the file, the line, the key and the
// cause. All errors of a file are found, not only the first.
//
// The caller asks for each key that it knows, with its bounds. A key that it did not ask
// for is an error. An absent key leaves the variable as it is, so the caller sets
// defaults before. The package itself knows no keys, and imports no other package of the
// project.
package tomlfile
