// Package tomlfile reads TOML files strictly: what is not known, of the wrong type or
// out of its bounds is an error that names the file, the line, the key and the cause.
// All errors of a file are found, not only the first.
//
// Whoever reads a file asks for each key that it knows, with its bounds; a key that
// nobody asked for is an error. Absent keys leave what they are read into as it is, so
// that defaults are set before. The package knows no key and imports no other package
// of the project.
package tomlfile
