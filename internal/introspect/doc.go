// Package introspect understands a Windows guest from the outside: it
// translates addresses, finds the kernel, and enumerates processes, modules and
// drivers from guest memory alone.
//
// It reads through a source.Source and takes structure layouts from a
// winstruct.Profile. Every structure is copied once and validated from the copy;
// every list, string and depth is bounded. A lie, a cycle or a torn read is an
// error of the object it is in and never ends the enumeration of the others.
package introspect
