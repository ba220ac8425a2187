// Package policy reads policies from files: policy.toml, and the lists of hashes that it
// names. internal/verdict applies them.
//
// A file is either refused, with everything that is wrong in it, or becomes a
// verdict.Policy. Rules that never decide are warnings.
package policy
