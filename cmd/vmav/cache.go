package main

import (
	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/cache"
	"vmav.dev/vmav/internal/scan"
)

func cacheFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-cache", Usage: "scan everything anew, and keep nothing of it for the next scan"}
}

// openCache opens what earlier scans have remembered. Without it a scan takes longer, and
// no more: the user is told, unless told is that the state directory is of no use. The
// caller calls done when all is scanned.
func (e *env) openCache(c *cli.Context, told bool) (memory *scan.Cache, done func(), err error) {
	if c.Bool("no-cache") {
		return scan.NewCache(), func() {}, nil
	}
	s, err := e.settings(c)
	if err != nil {
		return nil, nil, err
	}
	dir, err := e.stateDirectory(c)
	if err != nil {
		return nil, nil, err
	}
	var db *cache.DB
	program, err := cache.Program()
	if err == nil {
		db, err = cache.Open(dir, cache.Options{MaxSize: s.Cache.MaxSize, Warn: func(s string) { e.warn("%s", s) }})
	}
	if err != nil {
		if told {
			return scan.NewCache(), func() {}, nil
		}
		e.warn("what earlier scans have seen is not known, and all is scanned: %v", err)
		return scan.NewCache(), func() {}, nil
	}
	return scan.NewLastingCache(db, program), func() {
		if err := db.Close(); err != nil {
			e.warn("%v", err)
		}
	}, nil
}
