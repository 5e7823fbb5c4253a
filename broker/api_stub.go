package broker

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign/store"
)

// Broker is the core. Open makes one; Close it once, after its connections.
type Broker struct{ o Options }

// Open reads what is stored and starts the core.
func Open(ctx context.Context, o Options) (*Broker, error) { return &Broker{o: o}, nil }

// Close publishes the wills that are due, writes what waits and stops the core.
func (b *Broker) Close(ctx context.Context) error { return nil }

// Connect makes or resumes the session of a client. It takes over from a connection
// that has it still, which is Lost. A session that is to be kept is on record when
// Connect returns. The caller sends CONNACK, then calls Start.
//
// The error has the code Unavailable when the database does not take the session, and
// OverBudget when the store is full.
func (b *Broker) Connect(ctx context.Context, h Hello, c Client) (conn *Conn, present bool, err error) {
	panic("stub")
}

// Conn is a client's connection to its session. Its methods are for the goroutine that
// reads the client, except Wake and Close.
type Conn struct{}

// Start has what waits for the client delivered.
func (c *Conn) Start() {}

// Publish routes a message of the client. With QoS 1 and 2 the client is acknowledged
// through [Client.Acknowledge] in the order of the calls: at once, or once what it
// concerns is on record. It waits while maxUnanswered publishes of the client do. A
// message that was received before under the same identifier is acknowledged and not
// routed again (QoS 2).
func (c *Conn) Publish(m *Message, id uint16) error { panic("stub") }

// Release takes PUBREL of the client.
func (c *Conn) Release(id uint16) error { panic("stub") }

// Acknowledge takes PUBACK, PUBREC or PUBCOMP of the client; code is its reason code.
func (c *Conn) Acknowledge(kind Acknowledgment, id uint16, code byte) { panic("stub") }

// Subscribe adds subscriptions and returns a reason code for each: the granted QoS or
// QuotaExceeded or Unspecified. Those of a kept session are on record then. The caller
// sends SUBACK, then calls Retained with the same arguments.
func (c *Conn) Subscribe(ctx context.Context, subs []Subscription) (codes []byte) { panic("stub") }

// Retained delivers the retained messages that a SUBSCRIBE asks for.
func (c *Conn) Retained() { panic("stub") }

// Unsubscribe removes subscriptions and returns a reason code for each: Success,
// NoSubscription, or Unspecified where the database does not take it.
func (c *Conn) Unsubscribe(ctx context.Context, filters []string) (codes []byte) { panic("stub") }

// Flush writes what the client's publishes left in the output of their receivers.
func (c *Conn) Flush() {}

// Wake has messages that found no room delivered. Any goroutine may call it.
func (c *Conn) Wake() {}

// Close ends the connection: the session is kept for its expiry, or for *expiry if that
// is not nil (MQTT 5, 3.14.2.2.2), and the will is published, now or after its delay,
// unless will is false. Only the first call counts; after a takeover none does.
func (c *Conn) Close(will bool, expiry *time.Duration) {}

// Publish routes a message of the node itself and returns once what it concerns is on
// record.
func (b *Broker) Publish(ctx context.Context, m *Message) error { panic("stub") }

// Listen calls receive for each message that matches filter, one after another, until
// ctx ends. It returns once the subscription is in force.
func (b *Broker) Listen(ctx context.Context, filter string, receive func(*Message)) error {
	panic("stub")
}

// Purge removes all that is stored for a device from the record, within tx: sessions,
// subscriptions, queues, and the retained messages that it published. Forget follows it
// after the commit, on every node.
func (b *Broker) Purge(ctx context.Context, tx *store.Tx, device string) error { panic("stub") }

// Forget drops from memory what Purge removed from the record.
func (b *Broker) Forget(device string) { panic("stub") }

// Usage returns what devices have of the node, those with the most octets first.
func (b *Broker) Usage(max int) []Usage { panic("stub") }

// Stats counts.
func (b *Broker) Stats() Stats { panic("stub") }
