package clam_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"vmav.dev/vmav/internal/clam"
)

// A private engine is started with signatures of one's own, and asked about a content.
func ExampleEngine_Scan() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	database := filepath.Join(dir, "example.ndb")
	signature := "Example.Marker:0:*:" + hex.EncodeToString([]byte("EXAMPLE-MARKER")) + "\n"
	if err := os.WriteFile(database, []byte(signature), 0o600); err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	engine, err := clam.Open(ctx, clam.Options{Databases: []string{database}, TempDir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()

	for _, content := range []string{"harmless", "before EXAMPLE-MARKER behind"} {
		r, err := engine.Scan(ctx, "an example", []byte(content))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q: signature %q, skipped %q\n", content, r.Signature, r.Skipped)
	}
	// Output:
	// "harmless": signature "", skipped ""
	// "before EXAMPLE-MARKER behind": signature "Example.Marker", skipped ""
}
