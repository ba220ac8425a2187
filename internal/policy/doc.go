// Package policy reads policies from files: policy.toml and the lists of hashes that it
// names. What a policy decides is internal/verdict's.
//
// A file is refused with all that is wrong in it, or comes as a verdict.Policy and
// warnings of rules that never decide.
package policy
