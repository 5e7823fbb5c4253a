package mqtt

import (
	"cmp"
	"crypto/tls"
	"hash/maphash"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/edge"
)

// Server is the MQTT gateway. Set the fields, call Serve, then Close once.
type Server struct {
	Gatekeeper countersign.Gatekeeper
	Index      *edge.Index
	// Broker carries the messages, or Relay does: one of them is set.
	Broker  *broker.Broker
	Relay   *Relay
	TLS     *tls.Config // see edge.TLSConfig
	Gateway string      // name of this gateway in sessions and events; empty: mqtt
	Caps    edge.Limits
	Guard   *edge.Guard // shared with the other listeners of the node; nil: one of its own
	Limits  Limits
	// Origins are the web origins whose pages may connect over WebSocket, beside
	// those of the host itself: https://app.example.com, *.example.com.
	Origins []string
	// Pages answers what is asked of the WebSocket listener beside MQTT: the sign-in
	// of browsers. nil: nothing.
	Pages http.Handler
	Log   *slog.Logger
	Now   func() time.Time

	once     sync.Once
	gate     edge.Gate
	web      edge.Gate // for WebSocket
	count    counters
	closing  atomic.Bool
	seed     maphash.Seed
	accounts accounts

	mu      sync.Mutex
	clients map[string]*claim // by client identifier
}

// Limits bound one client. Zero means the default.
type Limits struct {
	MaxPacket     int           // bytes of one packet after CONNECT, fixed header included
	Connect       time.Duration // from the TLS handshake to the end of CONNECT
	MaxKeepAlive  time.Duration // longest keep alive of an MQTT 5 client of the broker core
	Subscriptions int           // topic filters of one session with a relay; see broker.Limits for the core
	// Flood is how long a device may publish more than its budget without a pause. Until
	// then it is read more slowly.
	Flood time.Duration
	// Stall is how long a client may take none of what is sent to it, or have messages of
	// QoS 0 dropped because it takes too little.
	Stall time.Duration
}

// The defaults and the fixed limits.
const (
	// DefaultMaxPacket is ample for telemetry and small files; whole messages are
	// buffered.
	DefaultMaxPacket = 256 << 10
	// DefaultConnect is as much as a handshake has, see edge.DefaultHandshake.
	DefaultConnect = edge.DefaultHandshake
	// DefaultMaxKeepAlive is under the 30 minutes after which common NAT boxes
	// forget a TCP connection.
	DefaultMaxKeepAlive = 20 * time.Minute
	// DefaultSubscriptions is many times what a device of ours may subscribe to.
	DefaultSubscriptions = broker.DefaultSubscriptions
	// DefaultFlood is the time in which a device that was offline hands in 300,000
	// messages.
	DefaultFlood = 10 * time.Minute

	// maxConnect bounds CONNECT, which a stranger sends: a binary password and a will,
	// of 64 KiB each as MQTT allows, and 8 KiB for the rest. Memory is taken as the
	// bytes arrive.
	maxConnect = 136 << 10
	// maxClientID is a device id with a suffix of the same length.
	maxClientID = 2*countersign.MaxDeviceID + 1
	// engineTimeout bounds what the engine may take to accept a session.
	engineTimeout = 10 * time.Second
	// lingerTimeout and lingerBytes bound the wait for a refused peer to read why.
	lingerTimeout = time.Second
	// leaveTimeout bounds the wait for a client that left to close its side. Clients do
	// it right behind DISCONNECT.
	leaveTimeout = 250 * time.Millisecond
	lingerBytes  = 64 << 10
	// deniedEvery bounds how often one session's denied acts are reported.
	deniedEvery = time.Second
	// maxTold bounds the topics of one session that are reported when they are allowed for
	// the first time: a sample of what devices do, for trying out policies.
	maxTold = 32
	// maxSoftware bounds what the client claims about itself.
	maxSoftware = 128
	// alpnMQTT is registered for MQTT over TLS, alpnAWS is what SDKs of AWS IoT offer.
	alpnMQTT, alpnAWS = "mqtt", "x-amzn-mqtt-ca"
	// takeoverWait bounds how long a client waits until its older session is gone.
	takeoverWait = 5 * time.Second
)

func (l Limits) withDefaults() Limits {
	l.MaxPacket = cmp.Or(l.MaxPacket, DefaultMaxPacket)
	l.Connect = cmp.Or(l.Connect, DefaultConnect)
	l.MaxKeepAlive = cmp.Or(l.MaxKeepAlive, DefaultMaxKeepAlive)
	l.Subscriptions = cmp.Or(l.Subscriptions, DefaultSubscriptions)
	l.Flood = cmp.Or(l.Flood, DefaultFlood)
	l.Stall = cmp.Or(l.Stall, DefaultStall)
	return l
}

type counters struct {
	upgradeFailed, connects, refused, opened, closed, published, delivered, denied, malformed, engineFailed atomic.Uint64
	unread, slowed, overBudget                                                                              atomic.Uint64
}

// Stats are the counts of a server since it was made.
type Stats struct {
	edge.Stats
	NoUpgrade    uint64 // requests to the WebSocket listener that opened none
	Connects     uint64 // well-formed CONNECT packets
	Refused      uint64 // of those, by the Gatekeeper or the gateway
	Opened       uint64 // sessions
	Closed       uint64
	Published    uint64 // PUBLISH packets passed on to the engine
	Delivered    uint64 // PUBLISH packets passed on to devices
	Denied       uint64 // acts that the permissions refused
	Malformed    uint64 // connections ended for a breach of the protocol
	EngineFailed uint64 // sessions that the engine did not take or gave up
	Unread       uint64 // messages of QoS 0 that were dropped because their client does not read
	Slowed       uint64 // times that a device was read more slowly because of its budget
	OverBudget   uint64 // connections, subscriptions and retained messages that were refused because of it, and sessions that were ended
}

// claim is a client identifier in use.
type claim struct {
	live *edge.Live
	done chan struct{} // closed once the back has let go of the session
}

// claim makes live the holder of the client identifier within its device: a device id may
// hold a colon, so device "a" may call itself "a:b" while there is a device "a:b". Neither
// name holds U+0000. An older holder is ended and waited for, so that the back never sees
// two, and never the older one last. The caller calls release once the back's side is closed.
func (s *Server) claim(info countersign.Session, live *edge.Live) (release func()) {
	id := info.Device + "\x00" + info.ClientID
	mine := &claim{live, make(chan struct{})}
	s.mu.Lock()
	older := s.clients[id]
	s.clients[id] = mine
	s.mu.Unlock()
	if older != nil {
		older.live.End(countersign.Ending{Code: countersign.EndTakenOver, Reason: "the same client identifier connected again"})
		t := time.NewTimer(takeoverWait)
		defer t.Stop()
		select {
		case <-older.done:
		case <-t.C:
		}
	}
	return func() {
		s.mu.Lock()
		if s.clients[id] == mine {
			delete(s.clients, id)
		}
		s.mu.Unlock()
		close(mine.done)
	}
}
