// Package respond is the half of vmav that acts. It takes findings as a scan tells of
// them, and in this order
//
//  1. has the policy decide (package verdict),
//  2. stores the evidence, records the finding in the history, and only then goes on,
//  3. carries the verdicts out when the guest has been looked at, each recorded before it
//     touches the guest (package kill),
//  4. records what was seen to happen, and
//  5. tells those who want to know (package notify).
//
// Everything that wants that order goes through here, and nothing else writes findings
// into the history. An error of a record or of an action leaves the result incomplete and
// ends nothing: a full disk must not be a way past vmav.
//
// It knows scan's data and none of its workings, and must not import package worker.
package respond
