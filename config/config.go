// Package config holds the settings of a server: one struct whose field comments
// are the manual, a strict reader for its YAML form, and Check, which returns
// all that is wrong with it. It opens no listener and no database.
package config

import (
	"time"
)

// Config is the whole configuration. Its zero value works: a server on an
// embedded database in ./.countersign. In the file each field has the name of
// its yaml tag; unknown names are refused.
type Config struct {
	// Dir is the data folder: database, keys, socket. The flag --dir and the
	// variable COUNTERSIGN_DIR win over the file. Default .countersign.
	Dir string `yaml:"dir"`

	// Database is empty for the embedded SQLite database in Dir, else the URL of
	// a PostgreSQL 15 or newer: postgres://user@host/name. A URL with a password
	// belongs in a file or a variable: write file:/path or env:NAME here.
	Database Database `yaml:"database"`

	// StorageLimit bounds the file of the embedded database. A write beyond it is
	// refused as one to a full disk is: nothing is lost, enrollment answers 503. A
	// number of bytes, or with KiB, MiB, GiB. Default 0: what the disk holds.
	StorageLimit Size `yaml:"storage_limit"`

	// Reserve is space beside the embedded database, and beyond StorageLimit, that only
	// revocations and suspensions may use, so that they work on a full disk. From 4MiB
	// to 1GiB. Default 16MiB.
	Reserve Size `yaml:"reserve"`

	// Listeners are the addresses that the server serves.
	Listeners Listeners `yaml:"listeners"`

	// Names are the DNS names and IP addresses under which devices reach the
	// server; they are in its TLS certificate. Default: localhost, the loopback
	// addresses and the name of the host.
	Names []string `yaml:"names"`

	// StatusURL is the base URL under which relying parties reach the status
	// listener. It is written into every certificate (CRL distribution point,
	// OCSP, issuer's certificate) and so outlives a change here. It must be plain
	// http: a checker of certificates cannot use https to check the certificate of
	// that https. Default: http:// with the first of Names and the status port.
	StatusURL string `yaml:"status_url"`

	// RootPassphrase refers to the passphrase that wraps the root key. Empty
	// leaves the key in a file that only its mode protects; the server says so at
	// each start.
	RootPassphrase Secret `yaml:"root_passphrase"`

	// OfflineRoot lets the server start without the root key, where it is kept elsewhere.
	// Put it back for a start before the root's CRL ends, which is half a year. Default
	// false: a missing root key is refused as one that was lost.
	OfflineRoot bool `yaml:"offline_root"`

	// Tunnels are listeners that let devices through to other TCP services.
	Tunnels []Tunnel `yaml:"tunnels"`

	// Hooks are the brokers and proxies of others that ask us.
	Hooks []Hook `yaml:"hooks"`

	// Notify are the channels by which alerts are sent.
	Notify []Channel `yaml:"notify"`

	// WebSocket bounds who may use the websocket listener.
	WebSocket WebSocket `yaml:"websocket"`

	// OIDC lets people whom an OpenID provider knows exchange their ID token for an
	// access token.
	OIDC OIDC `yaml:"oidc"`

	// Engine carries the messages behind the MQTT listener.
	Engine Engine `yaml:"engine"`

	// WeakKeys are files that list RSA keys known to be weak, in the form of Debian's
	// openssl-blacklist (CVE-2008-0166). Their keys get no certificate. None is
	// built in, since no package of today carries one.
	WeakKeys []string `yaml:"weak_keys"`

	// Limits bound what strangers can take.
	Limits Limits `yaml:"limits"`

	// Audit says when the server looks through its own records.
	Audit Audit `yaml:"audit"`

	// Overlap is how long a new fleet lets a device use the certificate that a new
	// one superseded. A fleet can change its own. Default 24h.
	Overlap time.Duration `yaml:"overlap"`

	// CRLValidity is how long nextUpdate is after thisUpdate. A list is
	// published anew at half of it, and at each revocation. Default 24h.
	CRLValidity time.Duration `yaml:"crl_validity"`

	// OfflineSessions is how long live sessions go on while the PostgreSQL database
	// cannot be reached: from a second to a day. New connections are refused meanwhile,
	// and a revocation on another node does not reach this one. Default 15m.
	OfflineSessions time.Duration `yaml:"offline_sessions"`

	// Log is what the server writes to standard error.
	Log Log `yaml:"log"`
}

// Listeners are host:port pairs. An empty host means all addresses, port 0 a
// free port; "off" closes the door altogether.
type Listeners struct {
	// Enroll serves EST and REST enrollment over TLS. Default :8443.
	Enroll string `yaml:"enroll"`

	// Recovery serves the renewal of certificates that have expired, within the
	// bounds of each fleet, and nothing else. Default off.
	Recovery string `yaml:"recovery"`

	// MQTT serves MQTT over TLS. Default :8883.
	MQTT string `yaml:"mqtt"`

	// WebSocket serves MQTT over WebSocket over TLS, for browsers: it asks for no
	// client certificate. Default off.
	WebSocket string `yaml:"websocket"`

	// Hook answers the brokers and proxies of Hooks. On a loopback address it is plain
	// HTTP, on any other one HTTPS with the server's own certificate. Default off.
	Hook string `yaml:"hook"`

	// API serves the operators' API. On a loopback address it is plain HTTP, on
	// any other one HTTPS with the server's own certificate. Default 127.0.0.1:8080.
	API string `yaml:"api"`

	// Status serves CRLs, OCSP and the authorities' certificates over plain HTTP;
	// what it serves is signed. Default :8090.
	Status string `yaml:"status"`
}

// OIDC is an OpenID provider. Empty: there is none.
type OIDC struct {
	// Issuer is its https URL, exactly as it is in its tokens.
	Issuer string `yaml:"issuer"`

	// ClientID is under what name our web applications are registered there; an ID
	// token must be made out to it.
	ClientID string `yaml:"client_id"`

	// Roots is a PEM file with the roots that its certificate must chain to. Default:
	// the roots of the system.
	Roots string `yaml:"roots"`

	// Grants say who may do what; the first that fits counts, and whom none fits may
	// do nothing.
	Grants []Grant `yaml:"grants"`
}

// Grant is the role of people with a value in a claim of their ID token.
type Grant struct {
	// Claim is the name of the claim, such as groups.
	Claim string `yaml:"claim"`

	// Value must be the claim's value, or in its list. Default: any.
	Value string `yaml:"value"`

	// Role is viewer, who listens, or operator or admin, who control.
	Role string `yaml:"role"`

	// Fleets whose devices it is about. Default: all.
	Fleets []string `yaml:"fleets"`
}

// Tunnel is a TLS listener that lets in devices with a good certificate and moves
// their bytes to a TCP service.
type Tunnel struct {
	// Name is in sessions and events: 1 to 63 of a-z 0-9 and inner hyphens.
	Name string `yaml:"name"`

	// Listen is the host:port that devices connect to.
	Listen string `yaml:"listen"`

	// To is the host:port of the service. It should accept connections from this
	// server only.
	To string `yaml:"to"`

	// Fleets that may pass. Default: all.
	Fleets []string `yaml:"fleets"`

	// Plain sends the device's bytes and nothing else. Default: a PROXY protocol
	// header, version 2, goes first, with the device's address and id.
	Plain bool `yaml:"plain"`
}

// WebSocket bounds who may use the websocket listener.
type WebSocket struct {
	// Origins are the web origins whose pages may connect: https://app.example.com,
	// or app.example.com whatever the scheme; * matches any characters. Programs
	// that are no browser send none and may always. Default: pages of the same host
	// and port only.
	Origins []string `yaml:"origins"`
}

// Off in place of an address turns a listener off.
const Off = "off"

// Engine is the broker that carries the messages behind the MQTT listener.
type Engine struct {
	// Kind is builtin for the broker core of this server, or broker for any MQTT broker
	// that listens on Addr. Default builtin.
	Kind string `yaml:"kind"`

	// Addr is the host:port of the broker. It should accept connections from this
	// server only: a connection from it was checked here.
	Addr string `yaml:"addr"`

	// TLS speaks TLS to the broker.
	TLS bool `yaml:"tls"`

	// Roots is a PEM file with the roots that the broker's certificate must chain
	// to. Default: the roots of the system.
	Roots string `yaml:"roots"`

	// ServerName is the name that the broker's certificate must have. Default: the
	// host of Addr.
	ServerName string `yaml:"server_name"`

	// Certificate and Key are PEM files with which the server shows itself to the
	// broker. Empty: it shows nothing.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`

	// StorageLimit bounds what the built-in engine keeps in the database: retained and
	// queued messages of all devices. Default 1GiB.
	StorageLimit Size `yaml:"storage_limit"`

	// SessionExpiry is how long the built-in engine keeps the session of a device that is
	// not connected, at most. Default 720h.
	SessionExpiry time.Duration `yaml:"session_expiry"`

	// QueueMessages and QueueSize bound what waits in the built-in engine for one device
	// that is not connected, or reads slowly. Default 1000, and 4MiB.
	QueueMessages int  `yaml:"queue_messages"`
	QueueSize     Size `yaml:"queue_size"`

	// Node is the name under which the built-in engine keeps sessions and messages in a
	// database that other servers may share: a session belongs to the server where its
	// device connected. Default: a random one, which the data folder keeps.
	Node string `yaml:"node"`
}

// The kinds of engine.
const (
	EngineBuiltin = "builtin"
	EngineBroker  = "broker"
)

// Limits bound connections; see docs for the limits that are fixed.
type Limits struct {
	// MaxConnections is how many devices may be connected over MQTT at once. More
	// are turned away before the handshake. Default 20000, which the built-in
	// engine carries in 2 GB of memory.
	MaxConnections int `yaml:"max_connections"`

	// PerAddress is how many of them may share a remote address. Whole sites come
	// from behind one; default 5000.
	PerAddress int `yaml:"per_address"`

	// Handshakes is how many connections, over all listeners for devices, may be
	// on the way to their first request. Default 1000: what two cores finish
	// within ConnectTimeout.
	Handshakes int `yaml:"handshakes"`

	// ConnectTimeout is how long a connection may take for the TLS handshake, and
	// then for its first request. Default 30s: round trips take 6 s on NB-IoT, and
	// what is lost is sent again.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`

	// AllowNetworks are networks, or single addresses, that are never blocked for
	// wrong credentials nor slowed: those of factories, where one wrong list of
	// tokens must not stop the line. Default: none.
	AllowNetworks []string `yaml:"allow_networks"`

	// Packet is the largest MQTT packet. Default 256KiB, at most 16MiB.
	Packet Size `yaml:"packet"`
}

// Audit says when the server looks through its own records; see docs/audit.md.
type Audit struct {
	// Every is the time from one scheduled audit to the next, from 1h to 744h. It is
	// reckoned from the last one, also over restarts. Default 24h.
	Every time.Duration `yaml:"every"`
}

// Log says how much is logged and in which form.
type Log struct {
	// Level is debug, info, warn or error. Default info.
	Level string `yaml:"level"`

	// Format is text, json or auto: text on a terminal, else json. Default auto.
	Format string `yaml:"format"`
}

// DefaultDir is the data folder if none is named.
const DefaultDir = ".countersign"

// The defaults that field comments promise.
const (
	defaultEnroll         = ":8443"
	defaultMQTT           = ":8883"
	defaultAPI            = "127.0.0.1:8080"
	defaultStatus         = ":8090"
	defaultStorageLimit   = Size(1 << 30)
	defaultReserve        = Size(16 << 20)
	defaultMaxConnections = 20_000
	defaultPerAddress     = 5_000
	defaultHandshakes     = 1_000
	defaultConnectTimeout = 30 * time.Second
	defaultPacket         = Size(256 << 10)
	defaultCRLValidity    = 24 * time.Hour
	defaultOffline        = 15 * time.Minute
	defaultAuditEvery     = 24 * time.Hour
)

// Dev is the configuration of countersign dev: everything on loopback, with the
// fixed ports of the documentation or, where freePorts is set, any.
func Dev(dir string, freePorts bool) Config {
	addr := func(port string) string {
		if freePorts {
			port = "0"
		}
		return "127.0.0.1:" + port
	}
	return Config{
		Dir: dir, Reserve: minReserve,
		Listeners: Listeners{
			Enroll: addr("8443"), Recovery: addr("8444"),
			MQTT: addr("8883"), WebSocket: addr("8084"),
			API:    addr("8080"),
			Status: addr("8090"),
		},
		Names: []string{"127.0.0.1", "localhost", "::1"},
	}.WithDefaults()
}
