// Package layering holds no code: its test keeps the packages of the project in
// their layers, and the system calls that touch foreign memory in one of them.
package layering
