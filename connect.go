package countersign

import (
	"context"
	"crypto/x509"
	"net/netip"
	"time"
)

// Connection is what a gateway knows of a device that asks to come in.
type Connection struct {
	Gateway  string // listener: mqtt, tunnel, …
	Remote   netip.AddrPort
	Protocol string              // as people say it: "MQTT 3.1.1", "MQTT 5"
	ClientID string              // MQTT Client Identifier; empty: the gateway assigns the device id
	Peer     []*x509.Certificate // TLS client chain as presented, leaf first; TLS proved possession of its key
	Username string
	Password []byte
}

// Verdict is the answer at the door. The zero Verdict is a refusal.
type Verdict struct {
	Allow       bool
	Code        Code   // why not; empty when allowed
	Reason      string // one sentence for the log and, where the wire can carry it, the peer
	Device      string // as far as it is known, also on a refusal
	Fleet       string
	Cert        CertRef
	Permissions Permissions
	NotAfter    time.Time // the session ends here
}

// Permissions are topic filters (MQTT 5, 4.7): what a session may do, and
// nothing else.
type Permissions struct {
	Publish   []string
	Subscribe []string
}

// Session is one live connection of a device through a gateway.
type Session struct {
	ID       string
	Device   string
	Fleet    string
	Cert     CertRef
	Gateway  string
	Protocol string
	ClientID string
	Remote   netip.AddrPort
	Since    time.Time
	NotAfter time.Time
}

// Gatekeeper is what a gateway asks and tells. Package ra implements it on
// access.Decide. No method blocks on the network of another party.
type Gatekeeper interface {
	// Admit decides a connection. The caller has indexed the connection before it
	// asks, so that a revocation which races the answer still finds the socket.
	Admit(ctx context.Context, c Connection) Verdict
	// Opened tells of an admitted session, once it carries traffic.
	Opened(s Session)
	// Closed tells of its end. why is a constant phrase such as "client left".
	Closed(s Session, why string)
	// Denied tells of an act within a session that its permissions refused:
	// action is publish, subscribe or will. Callers bound how often they tell.
	Denied(s Session, action, topic string)
}

// Cut tells a gateway which live sessions must end now.
type Cut struct {
	Device string  // all sessions of the device, or
	Cert   CertRef // those that rest on this certificate
	Reason string  // one sentence, shown to MQTT 5 clients
}
