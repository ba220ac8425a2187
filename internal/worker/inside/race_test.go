//go:build race

package inside

// raceDetector says that the tests were built with the race detector.
const raceDetector = true
