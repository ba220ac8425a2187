package pe_test

import (
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// benchFiles are images with many relocations, many imports, much code and little.
// The last is one whose checksum is put to use.
var benchFiles = []string{
	wineDir + "user32.dll", wineDir + "shell32.dll", wineDir + "ntdll.dll", wineDir + "notepad.exe",
	"/usr/x86_64-w64-mingw32/lib/zlib1.dll",
}

const wineDir = "/usr/lib/x86_64-linux-gnu/wine/x86_64-windows/"

func benchImage(b *testing.B, name string) (*pe.Image, pe.Options) {
	file, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	l := &petest.Loader{Rand: rand.New(rand.NewSource(1))}
	m, err := l.Map(file, l.Base(true))
	if err != nil {
		b.Fatal(err)
	}
	return imageOf(name, m), pe.Options{ResolveExport: resolver(l), PreferredBase: originalBase(file)}
}

// BenchmarkRebuild measures bytes of image rebuilt; compare with BenchmarkCopy.
func BenchmarkRebuild(b *testing.B) {
	for _, name := range benchFiles {
		b.Run(filepath.Base(name), func(b *testing.B) {
			img, opt := benchImage(b, name)
			var rb pe.Rebuilder
			b.SetBytes(int64(len(img.Mem)))
			b.ReportAllocs()
			for i := 0; i < b.N; i++ {
				if _, err := rb.Rebuild(img, opt); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCopy is the yardstick: copying the same bytes into a reused buffer.
func BenchmarkCopy(b *testing.B) {
	for _, name := range benchFiles {
		b.Run(filepath.Base(name), func(b *testing.B) {
			img, _ := benchImage(b, name)
			dst := make([]byte, len(img.Mem))
			b.SetBytes(int64(len(img.Mem)))
			for i := 0; i < b.N; i++ {
				copy(dst, img.Mem)
			}
		})
	}
}

// TestAllocations shows that what a rebuild allocates does not grow with the
// number of pages.
func TestAllocations(t *testing.T) {
	allocs := map[string]float64{}
	for _, name := range []string{"notepad.exe", "user32.dll"} {
		file, err := os.ReadFile(wineDir + name)
		if err != nil {
			t.Fatal(err)
		}
		l := &petest.Loader{Rand: rand.New(rand.NewSource(1))}
		m, err := l.Map(file, l.Base(true))
		if err != nil {
			t.Fatal(err)
		}
		img, opt := imageOf(name, m), pe.Options{PreferredBase: originalBase(file)}
		var rb pe.Rebuilder
		allocs[name] = testing.AllocsPerRun(10, func() {
			if _, err := rb.Rebuild(img, opt); err != nil {
				t.Fatal(err)
			}
		})
		if pages := len(img.Pages); allocs[name] > float64(pages)/2 || allocs[name] > 60 {
			t.Errorf("%s: %v allocations for %d pages", name, allocs[name], pages)
		}
	}
	if d := allocs["user32.dll"] - allocs["notepad.exe"]; d > 20 {
		t.Errorf("allocations grow with the image: %v", allocs)
	}
}

// BenchmarkSweep goes over a hundred different images, more than any cache holds,
// as a sweep over a guest does; rebuilt as they are, with the section's pages under the
// process's own copies, and with the whole file in the guest's cache to compare with; and
// copied.
func BenchmarkSweep(b *testing.B) {
	l := &petest.Loader{Rand: rand.New(rand.NewSource(1))}
	var images, shared []*pe.Image
	var bases []uint64
	var files [][]pe.FilePage
	var size, largest, fileSize int
	for i, path := range corpusFiles(b) {
		file, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		if i%7 != 0 || len(file) < 4096 {
			continue
		}
		h, err := pe.ParseHeaders(file)
		if err != nil {
			continue
		}
		m, err := l.Map(file, l.Base(h.PE64))
		if err != nil {
			continue
		}
		images, bases = append(images, imageOf(path, m)), append(bases, h.ImageBase)
		shared = append(shared, sharedImage(path, m))
		files = append(files, []pe.FilePage{{Data: file}})
		size, largest, fileSize = size+len(m.Mem), max(largest, len(m.Mem), len(file)), fileSize+len(file)
	}
	for _, c := range []struct {
		name   string
		images []*pe.Image
		files  [][]pe.FilePage // in the guest's cache
	}{{"rebuild", images, nil}, {"rebuild with the section's pages", shared, nil}, {"rebuild and compare with the cached file", shared, files}} {
		b.Run(c.name, func(b *testing.B) {
			var rb pe.Rebuilder
			b.SetBytes(int64(size))
			if c.files != nil {
				b.SetBytes(int64(size + fileSize))
			}
			b.ReportAllocs()
			for i := 0; i < b.N; i++ {
				for j, img := range c.images {
					opt := pe.Options{PreferredBase: bases[j]}
					if c.files != nil {
						opt.FilePages, opt.FileSize = c.files[j], uint64(len(c.files[j][0].Data))
					}
					if _, err := rb.Rebuild(img, opt); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	for _, both := range []bool{false, true} {
		name, bytes := "copy", size
		if both {
			name, bytes = "copy image and cached file", size+fileSize
		}
		b.Run(name, func(b *testing.B) {
			dst := make([]byte, largest)
			b.SetBytes(int64(bytes))
			for i := 0; i < b.N; i++ {
				for j, img := range images {
					copy(dst, img.Mem)
					if both {
						copy(dst, files[j][0].Data)
					}
				}
			}
		})
	}
}
