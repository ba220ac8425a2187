// Package respond is the half of vmav that acts. It takes findings from a scan and does the
// following, in this order:
//
//  1. It lets the policy decide (package verdict).
//  2. It stores the evidence, then records the finding in the history, and only then goes on.
//  3. When the scan is over, it carries out the verdicts (package kill). It records each
//     action before the action touches the guest.
//  4. It records what was seen to happen.
//  5. It tells those who want to know (package notify).
//
// Everything that needs this order goes through this package. No other code writes findings
// into the history. An error of a record or of an action makes the result incomplete but
// ends nothing, because a full disk must not be a way past vmav.
//
// The package knows the data of package scan but not how it scans. It must not import
// package worker.
package respond
