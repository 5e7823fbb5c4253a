package broker

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/countersign-iot/countersign/store"
)

// Message is one application message. It is shared by all that receive it and never
// changes once it was given to the core.
type Message struct {
	Topic   string
	Payload []byte
	// Props is the block of MQTT 5 properties that receivers get as they are: what the
	// publisher wrote without Topic Alias and Message Expiry Interval, and the sender's name.
	Props   []byte
	QoS     byte
	Retain  bool
	order   uint32    // among retained messages, see retained.announce
	Expires time.Time // zero: never
	Device  string    // that published it; it owns the message if it is retained
}

// cost is what the message counts for in bounds, in octets.
func (m *Message) cost() int { return len(m.Topic) + len(m.Payload) + len(m.Props) + messageCost }

// messageCost is what a stored message takes beside its topic, payload and properties.
const messageCost = 128

// Delivery is a message on its way to one client.
type Delivery struct {
	*Message
	QoS    byte // granted, at most the message's
	Retain bool // RETAIN of the PUBLISH packet
	Dup    bool
	ID     uint16 // 0 with QoS 0
	// SubIDs are the subscription identifiers of all subscriptions that match (MQTT 5, 3.3.2.3.8).
	SubIDs []uint32
	// Patient has a message of QoS 0 for which there is no room wait: it is Full then. A
	// retained message that a SUBSCRIBE asks for is.
	Patient bool
}

// Outcome is what became of a delivery.
type Outcome byte

// The outcomes of a delivery.
const (
	Sent    Outcome = iota
	Full            // no room now; a message of QoS 1 or 2 waits for [Conn.Wake]
	Dropped         // not for this client, which will not have it: as if it were acknowledged
)

// Acknowledgment names an acknowledging packet by its type (MQTT 5, 2.1.2).
type Acknowledgment byte

// The acknowledging packets.
const (
	Puback  Acknowledgment = 4
	Pubrec  Acknowledgment = 5
	Pubrel  Acknowledgment = 6
	Pubcomp Acknowledgment = 7
)

// Reason codes of MQTT 5, 2.4, that the core answers with.
const (
	Success            byte = 0x00
	NoSubscription     byte = 0x11
	Unspecified        byte = 0x80
	NotFound           byte = 0x92 // packet identifier
	QuotaExceeded      byte = 0x97
	serverShuttingDown byte = 0x8B
	sessionTakenOver   byte = 0x8E
	administrative     byte = 0x98
)

const (
	// maxPacketID is how many packet identifiers there are.
	maxPacketID = 65535
	// The values of Retain Handling that are not 0 (MQTT 5, 3.8.3.1).
	retainIfNew, retainNotAtAll = 1, 2
)

// Client is the connection of a session. Its methods are called by any goroutine, also
// while the connection ends; none of them may block or call the core.
type Client interface {
	// Deliver puts a PUBLISH into the connection's output. A message of QoS 0 for which
	// there is no room is Dropped, unless it is Patient.
	Deliver(d Delivery) Outcome
	// Acknowledge puts PUBACK, PUBREC, PUBREL or PUBCOMP into the output, whatever its room.
	Acknowledge(kind Acknowledgment, id uint16, code byte)
	// Flush writes what Deliver and Acknowledge gathered, as far as the peer takes it.
	Flush()
	// Receives reports whether the client may receive messages of the topic. The core asks
	// before it queues one.
	Receives(topic string) bool
	// Lost has the connection end because the core cannot serve it any more. code is the
	// reason code for DISCONNECT.
	Lost(code byte, reason string)
}

// Subscription is one filter of a SUBSCRIBE (MQTT 5, 3.8.3).
type Subscription struct {
	Filter      string // "$share/group/filter" for a shared one
	QoS         byte
	NoLocal     bool
	AsPublished bool   // Retain As Published
	Handling    byte   // Retain Handling
	ID          uint32 // subscription identifier; 0: none
}

// Will is published when a session's connection is lost (MQTT 5, 3.1.2.5).
type Will struct {
	Message
	Delay time.Duration
	Life  time.Duration // of the message, from its publication; 0: for ever
}

// Hello is what a gateway says of an admitted client.
type Hello struct {
	ClientID string // among all clients of the node
	Device   string // whose share of the node the session uses
	Clean    bool   // Clean Start
	// Expiry is how long the session is kept after its connection; 0: not at all.
	Expiry     time.Duration
	ReceiveMax uint16 // messages of QoS 1 and 2 that the client takes at once; 0: no bound of its own
	Kept       int    // sessions that the device may have stored beside those that are live
	Will       *Will
	Done       <-chan struct{} // closed when the connection is; nil: its reader notices by itself
	// Resends: a publish that the record does not take ends the connection, and the client
	// sends it again, and all behind it (MQTT 3.1.1). None of those is taken meanwhile.
	Resends bool
}

// Limits bound what one device may have of a node. Zero means the default.
type Limits struct {
	Subscriptions            int           // of all its sessions, stored ones too
	Retained, RetainedOctets int           // its retained messages
	Queued, QueuedOctets     int           // messages that wait for it in all its sessions
	Inflight                 int           // messages of QoS 1 and 2 on their way to one client, at most
	Store                    int64         // octets of retained and queued messages of all devices
	Expiry                   time.Duration // how long a session without a connection is kept at most
}

// The defaults of Limits.
const (
	// DefaultSubscriptions is many times what a device of ours may subscribe to.
	DefaultSubscriptions = 128
	// DefaultRetained is many times what a device that retains its state has.
	DefaultRetained = 256
	// DefaultRetainedOctets is 4 KiB for each of them.
	DefaultRetainedOctets = 1 << 20
	// DefaultQueued is a day of a command every minute and a half.
	DefaultQueued = 1000
	// DefaultQueuedOctets is 4 KiB for each of them.
	DefaultQueuedOctets = 4 << 20
	// DefaultInflight keeps a link of 50 ms at 2,500 messages a second.
	DefaultInflight = 128
	// DefaultStore fits a small machine.
	DefaultStore = 1 << 30
	// DefaultExpiry clears the session of a device that stays away: a month covers a
	// season's pause less than a lost device.
	DefaultExpiry = 30 * 24 * time.Hour
)

// Limits returns the bounds that are in force.
func (b *Broker) Limits() Limits { return b.o.Limits }

func (l Limits) withDefaults() Limits {
	l.Subscriptions = cmp.Or(l.Subscriptions, DefaultSubscriptions)
	l.Retained = cmp.Or(l.Retained, DefaultRetained)
	l.RetainedOctets = cmp.Or(l.RetainedOctets, DefaultRetainedOctets)
	l.Queued = cmp.Or(l.Queued, DefaultQueued)
	l.QueuedOctets = cmp.Or(l.QueuedOctets, DefaultQueuedOctets)
	l.Inflight = cmp.Or(l.Inflight, DefaultInflight)
	l.Store = cmp.Or(l.Store, DefaultStore)
	l.Expiry = cmp.Or(l.Expiry, DefaultExpiry)
	return l
}

// Options are the settings of a core.
type Options struct {
	DB *store.DB
	// Node names whose rows are read and written, among those of the nodes on one database.
	Node   string
	Limits Limits
	// Exceeded is called when a device wanted more than its share of budget: see the
	// names in package countersign. It must not block. A function, because the core knows
	// no event. Nil: nothing is.
	Exceeded func(device, budget string, limit int64)
	Log      *slog.Logger
	Now      func() time.Time
}

// Stats are counts of a core since it was opened. What it has now is TotalUsage.
type Stats struct {
	Dropped         uint64 // messages of QoS 1 and 2 that a full queue or store did not take
	Expired         uint64 // messages that expired before they were delivered
	SessionsDropped uint64 // kept sessions that were dropped because their device had more than it may
	CommitFailed    uint64 // transactions that the database did not take
}
