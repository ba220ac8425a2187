// Package wiretest has what the fuzz tests of both sides of a worker share.
package wiretest

import (
	"encoding/binary"

	"vmav.dev/vmav/internal/worker/wire"
)

// Packets cuts fuzzed bytes into packets: two bytes of length, then the packet. The packets
// are parts of data.
func Packets(data []byte) (out [][]byte) {
	for len(data) >= 2 {
		n := min(int(binary.LittleEndian.Uint16(data)), len(data)-2)
		out = append(out, data[2:2+n])
		data = data[2+n:]
	}
	return out
}

// Packet returns a message in the form that Packets cuts.
func Packet(kind byte, n int, args ...byte) []byte {
	f := wire.AppendFrame(nil, wire.Frame{Code: kind, N: n, Args: args})
	return append(binary.LittleEndian.AppendUint16(nil, uint16(len(f))), f...)
}
