package mqtt

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// Broker is any MQTT 3.1.1 and 5 broker over TCP as the engine. The broker must
// accept connections from the gateway only: it trusts what the gateway says.
type Broker struct {
	Addr string      // host:port
	TLS  *tls.Config // nil: plain TCP, for a broker on the same machine
	// ClientID and Username are what the broker sees. {client} stands for the
	// Client Identifier, with a slash behind the device id so that no device can take
	// the name of another; {device} for the device id, {fleet} for the fleet.
	// Empty: {client}, and no user name.
	ClientID string
	Username string
	Password []byte
	// Level 4 makes it an MQTT 3.1.1 broker, whose MQTT 5 clients pass the shim.
	// Zero: 5.
	Level byte
	Now   func() time.Time
}

// Traits of a broker: what MQTT allows.
func (b *Broker) Traits() Traits {
	if b.Level == 4 {
		return Traits{Level: 4}
	}
	return Traits{Level: 5}
}

// Dial connects to the broker. Its own rules may refuse the CONNECT that follows.
func (b *Broker) Dial(ctx context.Context, s countersign.Session, _ countersign.Permissions) (*Backend, error) {
	fill := strings.NewReplacer("{client}", brokerID(s), "{device}", s.Device, "{fleet}", s.Fleet)
	id := b.ClientID
	if id == "" {
		id = "{client}"
	}
	conn, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &Backend{Conn: conn, ClientID: fill.Replace(id), Username: fill.Replace(b.Username), Password: b.Password}, nil
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

func (b *Broker) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if b.TLS == nil {
		return d.DialContext(ctx, "tcp", b.Addr)
	}
	return (&tls.Dialer{NetDialer: &d, Config: b.TLS}).DialContext(ctx, "tcp", b.Addr)
}

// Purge cannot be done over MQTT: only the broker knows which client identifiers
// it keeps for the device.
func (b *Broker) Purge(context.Context, string) error {
	return countersign.Errorf(countersign.Conflict, "an external broker's sessions cannot be dropped from here").
		WithNext("drop the device's sessions with the broker's own tools")
}

// Close has nothing to do: the sessions own their connections.
func (b *Broker) Close() error { return nil }

// Publish is Platform's.
func (b *Broker) Publish(ctx context.Context, topic string, payload []byte) error {
	return b.send(ctx, 0, topic, payload)
}

// Unretain is Platform's.
func (b *Broker) Unretain(ctx context.Context, topic string) error {
	return b.send(ctx, flagRetain, topic, nil)
}

func (b *Broker) send(ctx context.Context, head byte, topic string, payload []byte) error {
	p, err := b.platform(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	return p.publish(ctx, head, topic, payload)
}

// Subscribe is Platform's.
func (b *Broker) Subscribe(ctx context.Context, filter string, receive func(string, []byte)) error {
	p, err := b.platform(ctx)
	if err != nil {
		return err
	}
	return p.subscribe(ctx, filter, receive)
}

func (b *Broker) platform(ctx context.Context) (*platform, error) {
	s := countersign.Session{ClientID: platformID(), Device: platformUser, Fleet: platformUser}
	back, err := b.Dial(ctx, s, countersign.Permissions{})
	if err != nil {
		return nil, err
	}
	return newPlatform(ctx, back, b.Now)
}
