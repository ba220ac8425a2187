package history

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkFound records findings one by one, each on disk before the next. What bounds it
// is BenchmarkSync: one write and fsync of a small file, on the same disk.
func BenchmarkFound(b *testing.B) {
	ctx := context.Background()
	db := openDB(b, b.TempDir())
	r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		f := found(8, "A")
		if err := r.Found(ctx, &f); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify verifies a history of ten thousand findings.
func BenchmarkVerify(b *testing.B) {
	db := openDB(b, b.TempDir())
	d := scan()
	for range 10000 {
		d.Findings = append(d.Findings, found(8, "A"))
	}
	if _, err := recordScan(context.Background(), db, nil, d); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		verify(b, db)
	}
}

func BenchmarkSync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for range b.N {
		if _, err := f.Write(page); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}
