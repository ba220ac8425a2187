package finding

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Address is a 64-bit address or size in the guest. In JSON it is a string, "0x…", because
// many readers lose digits of numbers above 2^53.
type Address uint64

// MarshalText implements encoding.TextMarshaler.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Address) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 0, 64)
	*a = Address(v)
	return err
}

// String returns the address in hexadecimal, "0x…".
func (a Address) String() string { return "0x" + strconv.FormatUint(uint64(a), 16) }

// NTStatus is a status code of the guest's kernel. In JSON it is a string, "0x…".
type NTStatus uint32

// String returns the status as eight hexadecimal digits, "0x…".
func (s NTStatus) String() string { return fmt.Sprintf("0x%08x", uint32(s)) }

// MarshalText implements encoding.TextMarshaler.
func (s NTStatus) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *NTStatus) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 0, 32)
	*s = NTStatus(v)
	return err
}

// Milliseconds is a duration. In JSON it is a number of milliseconds.
type Milliseconds time.Duration

// String returns the duration with its unit, "1.5 ms".
func (m Milliseconds) String() string {
	return fmt.Sprintf("%.1f ms", time.Duration(m).Seconds()*1000)
}

// MarshalJSON implements json.Marshaler.
func (m Milliseconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(time.Duration(m).Microseconds()) / 1000)
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Milliseconds) UnmarshalJSON(text []byte) error {
	var ms float64
	if err := json.Unmarshal(text, &ms); err != nil {
		return err
	}
	*m = Milliseconds(time.Duration(math.Round(ms*1000)) * time.Microsecond)
	return nil
}
