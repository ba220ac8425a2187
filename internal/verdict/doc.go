// Package verdict decides what is done about a finding. It is pure: it knows only the
// finding and the policy, and imports no other package of the project. internal/policy
// reads policies from files.
//
// A policy is a list of rules, and allowlists. A finding that an allowlist names is only
// reported. For any other the first rule that matches decides. If none matches, the
// finding is reported. Guards stand above all of this: a process that Windows cannot do
// without is never killed or held, whatever a policy or an option says.
package verdict
