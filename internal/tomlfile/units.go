package tomlfile

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseDuration reads a duration that is not negative: in Go's form ("1h30m", "5ms"), or
// a whole number of days or weeks ("30d", "2w").
func ParseDuration(s string) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return d, nil
	}
	for suffix, unit := range map[string]time.Duration{"d": day, "w": 7 * day} {
		text, ok := strings.CutSuffix(s, suffix)
		if n, err := strconv.ParseUint(text, 10, 32); ok && err == nil && n <= uint64(math.MaxInt64/unit) {
			return time.Duration(n) * unit, nil
		}
	}
	return 0, fmt.Errorf("%q is no duration: write \"500ms\", \"90s\", \"1h30m\", \"30d\" or \"2w\"", s)
}

// FormatDuration writes a duration so that ParseDuration reads it.
func FormatDuration(d time.Duration) string {
	if d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

const sizeUnits = "KMGT"

// ParseSize reads a size in bytes: a whole number, which K, M, G or T (powers of 1024)
// may follow.
func ParseSize(s string) (int64, error) {
	text, unit := s, int64(1)
	if n := len(s); n > 0 {
		if i := strings.IndexByte(sizeUnits, s[n-1]); i >= 0 {
			text, unit = s[:n-1], 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is no size: write \"512M\" or \"2G\"; K, M, G and T are powers of 1024", s)
	}
	return int64(n) * unit, nil
}

// FormatSize writes a size so that ParseSize reads it.
func FormatSize(n int64) string {
	suffix := ""
	for i := 0; i < len(sizeUnits) && n > 0 && n%1024 == 0; i++ {
		n, suffix = n/1024, sizeUnits[i:i+1]
	}
	return strconv.FormatInt(n, 10) + suffix
}
