// Package sweep is the main job on one guest: find its kernel, enumerate its
// processes, copy each image out of it, rebuild the file that was loaded, have
// ClamAV scan it, and decide what follows. It ties the lower packages together and
// owns none of what they know.
//
// A sweep never stops at something it cannot read: the thing is named in the
// result, and the result is then incomplete, which is never clean. Memory is
// bounded by the number of workers times the largest image that is taken.
package sweep
