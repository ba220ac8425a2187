package evidence_test

import (
	"bytes"
	"fmt"
	"log"
	"os"

	"vmav.dev/vmav/internal/evidence"
)

// What is stored is sealed: no scanner of the host finds the malware in it, and nobody
// runs it by accident. It is found by the SHA-256 of its content.
func ExampleStore() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := evidence.Open(dir, evidence.Limits{Size: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	sum, err := store.Put(evidence.Header{Kind: "scanned", Domain: "win10", Signature: "Win.Trojan.Agent-1"}, []byte("MZ malware"))
	if err != nil {
		log.Fatal(err)
	}
	item, err := store.Show(sum)
	if err != nil {
		log.Fatal(err)
	}
	sealed, err := os.ReadFile(item.Path)
	if err != nil {
		log.Fatal(err)
	}
	var content bytes.Buffer
	h, err := store.Extract(sum, &content)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("on disk as it is:", bytes.Contains(sealed, []byte("malware")))
	fmt.Printf("%s of %s: %q\n", h.Signature, h.Domain, &content)
	// Output:
	// on disk as it is: false
	// Win.Trojan.Agent-1 of win10: "MZ malware"
}
