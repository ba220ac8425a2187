package live

import (
	"fmt"
	"os"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

func TestMain(m *testing.M) {
	remove, err := harness.OwnState()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	remove()
	os.Exit(code)
}
