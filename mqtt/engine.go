package mqtt

import (
	"context"
	"net"

	countersign "github.com/countersign-iot/countersign"
)

// Engine carries the messages behind the gateway. It is told whom to expect; it
// decides nothing, and the gateway does not rely on it to end a session.
type Engine interface {
	// Traits says what the engine can do. It never changes.
	Traits() Traits
	// Dial opens the engine's side of one admitted session. What it keeps of the
	// session belongs to s.ClientID. The permissions are the engine's second line
	// of defense; an engine without one ignores them.
	Dial(ctx context.Context, s countersign.Session, p countersign.Permissions) (*Backend, error)
	// Purge drops what the engine keeps of a device without a connection:
	// sessions with their subscriptions and queued messages. The device is cut
	// before. An engine that cannot do it returns an error with the code Conflict.
	Purge(ctx context.Context, device string) error
	// Close stops the engine. Sessions end before.
	Close() error
}

// Platform is the operator's own way to the devices' messages. Both engines
// have it.
type Platform interface {
	// Publish hands payload to the engine at QoS 1 and returns once the engine
	// has taken responsibility for it.
	Publish(ctx context.Context, topic string, payload []byte) error
	// Unretain takes the retained message of a topic away.
	Unretain(ctx context.Context, topic string) error
	// Subscribe calls receive for each message that matches filter, one after
	// another, until ctx ends or the engine is gone. It returns once the engine has
	// confirmed the subscription.
	Subscribe(ctx context.Context, filter string, receive func(topic string, payload []byte)) error
}

// Traits are what the gateway must know of an engine.
type Traits struct {
	// Level is the newest protocol level that the engine speaks: 4 is MQTT 3.1.1,
	// 5 is MQTT 5. An MQTT 5 client of a level 4 engine passes the shim.
	Level byte
	// BadTopic tells of a topic name or filter that MQTT allows and the engine
	// does not take. nil: it takes them all.
	BadTopic func(topic string) bool
	// Resume has an engine that sends unacknowledged messages again by its own clock do
	// so now, since the session's client came back. It does not block. What such an
	// engine sends again to a client that stayed, the gateway drops. nil: the engine
	// does as MQTT wants.
	Resume func(s countersign.Session)
	// Forget has an engine that keeps the QoS 2 messages of a client beyond its session
	// drop those that wait for PUBREL. nil: the engine does as MQTT wants.
	Forget func(ctx context.Context, s countersign.Session) error
	// Wraps lets the gateway put the properties of MQTT 5 in front of payloads: nobody
	// reads the engine's messages but through it.
	Wraps bool
}

// Backend is the engine's side of a session: an open connection and what the
// gateway's CONNECT shows on it.
type Backend struct {
	Conn     net.Conn
	ClientID string
	Username string // empty: none is sent
	Password []byte // nil: none is sent
}
