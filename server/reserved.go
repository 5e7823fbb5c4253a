package server

import (
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
)

// reservedNames returns a function that reports whether a device id is a name of
// this server: those of its certificate, which Reload may change, of the host, and of
// the status URL. A device's certificate has its id as common name, and some programs
// compare that with the name of the host (RFC 2818, 3.1), so a device of that name
// could pass for the server.
func reservedNames(statusURL string, own *atomic.Pointer[[]string]) func(id string) bool {
	fixed := []string{"localhost"}
	if host, err := os.Hostname(); err == nil {
		fixed = append(fixed, asHost(host))
	}
	if u, err := url.Parse(statusURL); err == nil && u.Hostname() != "" {
		fixed = append(fixed, asHost(u.Hostname()))
	}
	return func(id string) bool {
		host := asHost(id)
		return slices.Contains(fixed, host) ||
			slices.ContainsFunc(*own.Load(), func(name string) bool { return asHost(name) == host })
	}
}

// asHost returns the form in which two names of hosts are equal: DNS names without
// regard to case and a trailing dot (RFC 1034, 3.1), addresses in their short form.
func asHost(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return strings.ToLower(strings.TrimSuffix(s, "."))
}
