package server

import (
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/countersign-iot/countersign/config"
)

// reservedNames returns a function that reports whether a device id is a name of
// this server: those of its certificate, of the host, and of the status URL. A
// device's certificate has its id as common name, and some programs compare that
// with the name of the host (RFC 2818, 3.1), so a device of that name could pass
// for the server.
func reservedNames(cfg config.Config) func(id string) bool {
	names := append([]string{"localhost"}, cfg.Names...)
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	if u, err := url.Parse(cfg.StatusURL); err == nil && u.Hostname() != "" {
		names = append(names, u.Hostname())
	}
	reserved := make(map[string]bool, len(names))
	for _, n := range names {
		reserved[asHost(n)] = true
	}
	return func(id string) bool { return reserved[asHost(id)] }
}

// asHost returns the form in which two names of hosts are equal: DNS names without
// regard to case and a trailing dot (RFC 1034, 3.1), addresses in their short form.
func asHost(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return strings.ToLower(strings.TrimSuffix(s, "."))
}
