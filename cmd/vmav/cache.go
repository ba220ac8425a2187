package main

import (
	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/cache"
	"vmav.dev/vmav/internal/scan"
)

func cacheFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-cache", Usage: "scan everything anew, and remember nothing for the next scan"}
}

// openCache opens what earlier scans have remembered. If it cannot, the scan only takes
// longer, and openCache warns the user. It does not warn if told says that the user already
// knows that the state directory cannot be used. The caller calls done after the scan.
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
		e.warn("the results of earlier scans cannot be used, so everything is scanned: %v", err)
		return scan.NewCache(), func() {}, nil
	}
	return scan.NewLastingCache(db, program), func() {
		if err := db.Close(); err != nil {
			e.warn("%v", err)
		}
	}, nil
}
