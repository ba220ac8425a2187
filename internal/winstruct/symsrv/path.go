package symsrv

import (
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// Microsoft is the address of Microsoft's public symbol server.
const Microsoft = "https://msdl.microsoft.com/download/symbols"

// place is one element of a symbol path: stores that are searched one after the other. A
// file found in one is copied into those before it.
type place struct {
	text   string // as the path spells it
	stores []store
}

// store is a directory or a server.
type store struct {
	dir string   // "" for a server
	url *url.URL // nil for a directory
}

func (s store) String() string {
	if s.url != nil {
		return s.url.Redacted()
	}
	return s.dir
}

var windowsPath = regexp.MustCompile(`^([A-Za-z]:|\\\\)`)

// parsePath parses a symbol path as debuggers use it in _NT_SYMBOL_PATH ("Symbol path for
// Windows debuggers", Microsoft): elements separated by semicolons, each a directory, a
// URL, srv*STORE*…*STORE, symsrv*DLL*STORE*… or cache*DIR, which is a cache for the
// elements behind it. own is the store that an empty one stands for.
func parsePath(path, own string) ([]place, error) {
	var out []place
	var caches []store
	for _, element := range strings.Split(path, ";") {
		element = strings.TrimSpace(element)
		if element == "" {
			continue
		}
		parts := strings.Split(element, "*")
		kind := strings.ToLower(parts[0])
		p := place{text: element}
		switch {
		case len(parts) == 1:
			s, err := parseStore(element)
			if err != nil {
				return nil, err
			}
			p.stores = []store{s}
		case kind == "cache":
			for _, text := range parts[1:] {
				s, err := parseStoreOr(text, own)
				if err != nil {
					return nil, err
				}
				caches = append(caches, s)
			}
			continue
		case kind == "srv", kind == "symsrv":
			rest := parts[1:]
			if kind == "symsrv" {
				if !strings.HasSuffix(strings.ToLower(rest[0]), ".dll") {
					return nil, fmt.Errorf("symbol path %q: behind symsrv* belongs the name of a DLL", element)
				}
				rest = rest[1:]
			}
			for _, text := range rest {
				s, err := parseStoreOr(text, own)
				if err != nil {
					return nil, err
				}
				p.stores = append(p.stores, s)
			}
			if len(rest) == 0 || len(rest) == 1 && rest[0] == "" {
				u, err := url.Parse(Microsoft)
				if err != nil {
					return nil, err
				}
				p.stores = []store{{dir: own}, {url: u}}
			}
		default:
			return nil, fmt.Errorf("symbol path %q: %q is none of srv, symsrv and cache", element, parts[0])
		}
		p.stores = append(append([]store{}, caches...), p.stores...)
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("symbol path %q names no place", path)
	}
	return out, nil
}

func parseStoreOr(text, own string) (store, error) {
	if text == "" {
		return store{dir: own}, nil
	}
	return parseStore(text)
}

func parseStore(text string) (store, error) {
	scheme, _, isURL := strings.Cut(text, "://")
	switch {
	case isURL && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")):
		u, err := url.Parse(strings.TrimRight(text, "/"))
		if err != nil || u.Host == "" {
			return store{}, fmt.Errorf("symbol path: %q is no URL", text)
		}
		return store{url: u}, nil
	case isURL:
		return store{}, fmt.Errorf("symbol path: %q is of neither http nor https", text)
	case windowsPath.MatchString(text):
		return store{}, fmt.Errorf("symbol path: %q is a path of Windows; name a directory of this host", text)
	case !filepath.IsAbs(text):
		return store{}, fmt.Errorf("symbol path: %q is not an absolute path", text)
	}
	return store{dir: filepath.Clean(text)}, nil
}
