package countersign

import (
	"context"
	"crypto/x509"
	"net/netip"
	"time"
)

// Connection is what a gateway knows about a client that connects.
type Connection struct {
	Gateway  string // listener: mqtt, tunnel, …
	Remote   netip.AddrPort
	Protocol string              // for people: "MQTT 3.1.1", "MQTT 5"
	ClientID string              // MQTT Client Identifier; empty: the gateway assigns the device id
	Peer     []*x509.Certificate // TLS client chain as presented, leaf first; TLS proved possession of its key
	Username string
	Password []byte   // any octets
	Exchange Exchange // one that Gatekeeper.Exchange began, whether or not it succeeded; nil: none was requested
	// Vouched names the broker or proxy that has authenticated the device Username
	// by itself and asks on its behalf; empty: the device itself connects.
	Vouched string
	// Rests is the existing session that the broker asks about, by the certificate or
	// credential that it depends on; nil: the device connects anew.
	Rests    *Session
	Hello    string // fingerprint of the TLS ClientHello; empty if unknown
	Software string // as the client names itself; empty if it does not
}

// Exchange is an authentication of several steps (MQTT 5, 4.12), such as SCRAM
// (RFC 5802). It serves one connection and is used by one goroutine.
type Exchange interface {
	// Next processes what the client sent and returns what to send back. If done, this
	// was the last step, and answer is sent with the acceptance. After an error the
	// client has failed; the caller still calls Admit for the verdict.
	Next(ctx context.Context, data []byte) (answer []byte, done bool, err error)
}

// Verdict is the decision about a Connection. The zero Verdict is a refusal.
type Verdict struct {
	Allow       bool
	Code        Code   // why not; empty when allowed
	Reason      string // one sentence for the log and, where the wire can carry it, the peer
	Device      string // as far as it is known, also on a refusal; see Session
	Fleet       string
	Cert        CertRef
	Credential  string // the credential that it depends on otherwise, as kind:id; empty with a certificate
	Scope       []string
	Permissions Permissions
	Budget      Budget    // what the session may use; the zero value is the defaults
	Ephemeral   bool      // nothing of the session is stored beyond its end
	NotAfter    time.Time // the session ends here
}

// Permissions are what a session may do, and nothing else.
type Permissions struct {
	Publish   Filters
	Retain    Filters // of what it may publish
	Subscribe Filters
	Receive   Filters
}

// Filters are topic filters (MQTT 5, 4.7). Deny goes before Allow. Package topic
// applies them.
type Filters struct {
	Allow []string
	Deny  []string
}

// Session is one live connection of a device through a gateway.
type Session struct {
	ID         string
	Device     string // its id; guest/<x> and operator/<name> are not devices, and no device can have such an id
	Fleet      string
	Cert       CertRef
	Credential string   // as in Verdict
	Scope      []string // devices that an operator's session is for; it ends with any of them
	Gateway    string
	Protocol   string
	ClientID   string
	Hello      string
	Software   string
	Remote     netip.AddrPort
	Since      time.Time
	NotAfter   time.Time
	// Permissions it was admitted with. A gateway that asks again for each act has none.
	Permissions Permissions
}

// Actor is who acts in the session.
func (s Session) Actor() Actor { return ActorOf(s.Device) }

// BrokerName is how an external broker names a session when it asks about it. An empty
// client matches any session of the user.
type BrokerName struct{ Client, User string }

// Gatekeeper decides what a gateway admits and records what the gateway reports. Package
// ra implements it on access.Decide. No method blocks on the network of another party.
type Gatekeeper interface {
	// Admit decides a connection. The caller has indexed the connection before it
	// asks, so that a revocation which races the answer still finds the socket.
	Admit(ctx context.Context, c Connection) Verdict
	// Exchange begins an authentication of several steps by the method's name. It
	// refuses an unknown method with BadRequest.
	Exchange(ctx context.Context, c Connection, method string) (Exchange, error)
	// Opened reports an admitted session, once it carries traffic.
	Opened(s Session)
	// Closed reports its end.
	Closed(s Session, end Ending)
	// Judged reports an act within a session, and whether its permissions allowed
	// it. Callers bound how often they call it.
	Judged(s Session, a Act)
	// Exceeded reports a session that requested or used more than limit of a budget. The
	// gateway has already refused or slowed it down. It may be called often.
	Exceeded(s Session, budget string, limit int64)
}

// Act is something that a session tried to do.
type Act struct {
	Action  string // publish, retain, subscribe, receive or will
	Topic   string // or filter
	Allowed bool
}

// Cut names the live sessions that a gateway must end now.
type Cut struct {
	Device     string    // all sessions of the device, and those with it in their scope, or
	Cert       CertRef   // those that depend on this certificate, or
	Credential string    // on this credential, or
	Session    string    // this one, by its id
	Code       EventType // the event that caused it
	Reason     string    // one sentence, shown to MQTT 5 clients
}

// EndCode is the reason why a session ended.
type EndCode string

// The codes. docs/events.md lists them under session.closed.
const (
	EndClientLeft EndCode = "client_left"      // it sent DISCONNECT, or closed as the protocol has it
	EndLost       EndCode = "connection_lost"  // it closed without that, or the network failed
	EndSilent     EndCode = "keep_alive"       // it sent nothing for too long
	EndProtocol   EndCode = "protocol_error"   // it broke the protocol's rules
	EndReauth     EndCode = "reauthentication" // it failed to authenticate again
	EndTakenOver  EndCode = "taken_over"       // the same client id connected again
	EndCut        EndCode = "cut"              // what it depends on was revoked or stopped
	EndExpired    EndCode = "expired"          // the certificate or token expired
	EndBudget     EndCode = "budget_exceeded"  // it used more than its budget
	EndUnverified EndCode = "unverified"       // the record could not be read for too long
	EndEngine     EndCode = "engine_closed"    // the message engine or the service behind closed it
	EndShutdown   EndCode = "server_stopping"
)

// Ending is the end of a session: a code that programs act on, and one sentence
// for people.
type Ending struct {
	Code   EndCode
	Reason string
}
