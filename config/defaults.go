package config

import (
	"cmp"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/countersign-iot/countersign"
)

// WithDefaults is c with each empty field replaced by its default. It leaves
// StatusURL empty where the status port is still to be chosen.
func (c Config) WithDefaults() Config {
	c.Dir = cmp.Or(c.Dir, DefaultDir)
	l := &c.Listeners
	l.Enroll = cmp.Or(l.Enroll, defaultEnroll)
	l.Recovery = cmp.Or(l.Recovery, Off)
	l.MQTT = cmp.Or(l.MQTT, defaultMQTT)
	l.WebSocket = cmp.Or(l.WebSocket, Off)
	l.Hook = cmp.Or(l.Hook, Off)
	l.API = cmp.Or(l.API, defaultAPI)
	l.Status = cmp.Or(l.Status, defaultStatus)
	c.Reserve = cmp.Or(c.Reserve, defaultReserve)
	if len(c.Names) == 0 {
		c.Names = defaultNames()
	} else {
		c.Names = slices.Clone(c.Names)
	}
	if c.StatusURL == "" {
		c.StatusURL = statusURL(c.Names[0], l.Status)
	}
	c.Notify = slices.Clone(c.Notify)
	for i := range c.Notify {
		c.Notify[i] = c.Notify[i].withDefaults()
	}
	c.Engine.Kind = cmp.Or(c.Engine.Kind, EngineBuiltin)
	c.Engine.StorageLimit = cmp.Or(c.Engine.StorageLimit, defaultStorageLimit)
	m := &c.Limits
	m.MaxConnections = cmp.Or(m.MaxConnections, defaultMaxConnections)
	m.PerAddress = cmp.Or(m.PerAddress, defaultPerAddress)
	m.Handshakes = cmp.Or(m.Handshakes, defaultHandshakes)
	m.ConnectTimeout = cmp.Or(m.ConnectTimeout, defaultConnectTimeout)
	m.Packet = cmp.Or(m.Packet, defaultPacket)
	c.Overlap = cmp.Or(c.Overlap, countersign.DefaultOverlap)
	c.CRLValidity = cmp.Or(c.CRLValidity, defaultCRLValidity)
	c.OfflineSessions = cmp.Or(c.OfflineSessions, defaultOffline)
	c.Audit.Every = cmp.Or(c.Audit.Every, defaultAuditEvery)
	c.Log.Level = cmp.Or(c.Log.Level, "info")
	c.Log.Format = cmp.Or(c.Log.Format, "auto")
	return c
}

// Allowed are the networks of AllowNetworks that Check found nothing wrong with.
func (m Limits) Allowed() []netip.Prefix {
	var list []netip.Prefix
	for _, s := range m.AllowNetworks {
		if p, err := countersign.ParseNetwork(s); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// Overlay puts what the environment says over c: COUNTERSIGN_DIR, nothing else.
func (c Config) Overlay(getenv func(string) string) Config {
	c.Dir = cmp.Or(getenv("COUNTERSIGN_DIR"), c.Dir)
	return c
}

// Path returns the path of name in the data folder.
func (c Config) Path(name string) string { return filepath.Join(c.Dir, name) }

// Socket is the path of the Unix socket on which local operators are served.
func (c Config) Socket() string { return c.Path(SocketName) }

// SocketName is the name of the operators' socket within the data folder.
const SocketName = "countersign.sock"

// PlainAPI reports whether the API listener speaks plain HTTP: on loopback only,
// where no one else can read the operator's token.
func (l Listeners) PlainAPI() bool {
	host, _, err := net.SplitHostPort(l.API)
	return err == nil && isLoopback(host)
}

// PlainHook reports whether the hook listener speaks plain HTTP, by the same rule.
func (l Listeners) PlainHook() bool {
	host, _, err := net.SplitHostPort(l.Hook)
	return err == nil && isLoopback(host)
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// defaultNames puts the name by which others know this host first, since the
// first name is the one that certificates point to.
func defaultNames() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	host, err := os.Hostname()
	if err != nil || checkHost(host) != nil || host == "localhost" {
		return names
	}
	return append([]string{host}, names...)
}

func statusURL(host, addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == "0" {
		return ""
	}
	if port == "80" {
		if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() {
			host = "[" + host + "]"
		}
		return "http://" + host
	}
	return "http://" + net.JoinHostPort(host, port)
}
