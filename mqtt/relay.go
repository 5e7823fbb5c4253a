package mqtt

import (
	"context"
	"crypto/tls"
	"net"
	"strings"

	countersign "github.com/countersign-iot/countersign"
)

// Relay is an MQTT 3.1.1 and 5 broker over TCP that carries the messages in the place of
// the broker core. It must accept connections from the gateway only: it trusts what the
// gateway sends.
//
// Sessions, queues and retained messages are the broker's. Over MQTT nothing can be
// dropped there for a device that is not connected.
type Relay struct {
	Addr string      // host:port
	TLS  *tls.Config // nil: plain TCP, for a broker on the same machine
	// ClientID and Username are what the broker sees. {client} is replaced by the
	// Client Identifier, with a slash behind the device id so that no device can take
	// the name of another; {device} for the device id, {fleet} for the fleet.
	// Empty: {client}, and no user name.
	ClientID string
	Username string
	Password []byte
}

// brokerID is the Client Identifier among all devices. A device id may hold a
// colon but no slash: "a:b" of device a becomes "a/b", device "a:b" stays. Who is
// no device gets a slash in front, as no device has.
func brokerID(s countersign.Session) string {
	if strings.Contains(s.Device, "/") {
		return "/" + s.Device + "/" + s.ID
	}
	rest, ok := strings.CutPrefix(s.ClientID, s.Device)
	if !ok || rest == "" {
		return s.ClientID
	}
	return s.Device + "/" + rest[1:]
}

// dial connects to the broker. Its own rules may refuse the CONNECT that follows.
func (r *Relay) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if r.TLS == nil {
		return d.DialContext(ctx, "tcp", r.Addr)
	}
	return (&tls.Dialer{NetDialer: &d, Config: r.TLS}).DialContext(ctx, "tcp", r.Addr)
}

// shows sets what the broker sees of the session.
func (r *Relay) shows(c *connect, s countersign.Session) {
	fill := strings.NewReplacer("{client}", brokerID(s), "{device}", s.Device, "{fleet}", s.Fleet)
	id := r.ClientID
	if id == "" {
		id = "{client}"
	}
	c.clientID, c.username, c.password = fill.Replace(id), fill.Replace(r.Username), r.Password
}
