package watch

import (
	"strconv"
	"strings"
)

// parseGroups parses the line "Groups:" of /proc/PID/status.
func parseGroups(status string) []uint32 {
	var out []uint32
	for _, line := range strings.Split(status, "\n") {
		list, ok := strings.CutPrefix(line, "Groups:")
		if !ok {
			continue
		}
		for _, f := range strings.Fields(list) {
			if gid, err := strconv.ParseUint(f, 10, 32); err == nil {
				out = append(out, uint32(gid))
			}
		}
	}
	return out
}
