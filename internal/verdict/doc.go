// Package verdict decides what is done about a finding. It is pure: it knows the
// finding and the policy and nothing else, and imports no other package of the
// project. internal/policy reads policies from files.
//
// A policy is a list of rules. What its allowlists name is reported and left alone;
// else the first rule that matches decides, and where none does the finding is
// reported. Guards stand over all of it: a process whose end or standstill would stop
// or cripple Windows is never killed or held, whatever a policy or an option says.
package verdict
