package mqtt

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// NATSOptions are the settings of the embedded engine.
type NATSOptions struct {
	Dir       string // its files; kept over restarts
	MaxStore  int64  // bytes of retained and queued messages and sessions; 0: 1 GiB
	MaxPacket int    // as Limits.MaxPacket of the gateway; 0: DefaultMaxPacket
	Log       *slog.Logger
	Now       func() time.Time
}

const (
	// natsMaxStore fits a small machine; sessions and retained messages of 20,000
	// devices take a tenth of it.
	natsMaxStore = 1 << 30
	// natsStart bounds the recovery of the message store at start.
	natsStart = time.Minute
	// natsConsumerIdle clears the queue of a persistent session whose device stays
	// away. A month covers a season's pause less than a lost device.
	natsConsumerIdle = 30 * 24 * time.Hour
	// natsTokenLife bounds how long a one-time token waits for its CONNECT.
	natsTokenLife = engineTimeout + 5*time.Second
	// natsGrace leaves the end of a session to the edge, which tells the device why;
	// the engine is there if the edge should fail to.
	natsGrace = 5 * time.Second
	// natsMaxTopic keeps subjects within what the store indexes well.
	natsMaxTopic = 1024
	// natsAckPending is how many messages of a subscription may be on their way to its
	// client.
	natsAckPending = 32
	// natsMaxPending is what the engine holds for one session that the gateway does not
	// take from it; nats-server's own bound is 64 MiB. The gateway leaves it there only
	// where the next message has QoS 1 or 2 and the client has as much unread as it may, so
	// this is natsAckPending of the messages that are usual, or a few of the largest.
	natsMaxPending = natsAckPending * DefaultMaxPacket
)

// NATS is the embedded engine: a nats-server with a message store of its own and
// one MQTT listener on a random loopback port. Any local user can reach that
// port, so each CONNECT needs a one-time token that only the gateway has.
type NATS struct {
	o NATSOptions

	mu     sync.Mutex
	srv    *server.Server   // replaced by revive
	addr   string           // of its MQTT listener
	grants map[string]grant // by token
	closed bool
	ill    bool                      // its store failed; revive is at work
	kept   map[string]map[string]int // filters of the stored sessions, as the start found them; see Kept

	reviver sync.WaitGroup
	stop    chan struct{} // closed by Close
	resumes chan struct{} // holds one for each Resume under way

	publisher struct {
		sync.Mutex
		p *platform
	}
}

// grant is what the holder of a token may do.
type grant struct {
	user    *server.User
	expires time.Time
}

// StartNATS starts the engine and waits until it accepts.
func StartNATS(o NATSOptions) (*NATS, error) {
	n := &NATS{o: o, grants: map[string]grant{}, stop: make(chan struct{}), resumes: make(chan struct{}, maxResumes)}
	if err := n.start(); err != nil {
		return nil, err
	}
	n.reviver.Go(n.keepSweeping)
	return n, nil
}

func (n *NATS) start() error {
	opts := &server.Options{
		ServerName: "countersign",
		DontListen: true, // no port for NATS clients
		NoSigs:     true,
		JetStream:  true,
		StoreDir:   n.o.Dir,
		MaxPayload: int32(cmp.Or(n.o.MaxPacket, DefaultMaxPacket) + wrapHead), //nolint:gosec // a small limit

		MaxPending: int64(max(natsMaxPending, 4*n.o.MaxPacket)),

		JetStreamMaxStore: cmp.Or(n.o.MaxStore, natsMaxStore),
		// Each subscription of QoS 1 or 2 is a consumer of one stream, or two. How many a
		// device may have the gateway bounds, see DefaultSubscriptions.
		JetStreamLimits:            server.JSLimitOpts{DefaultMaxConsumers: -1},
		CustomClientAuthentication: n,
		MQTT: server.MQTTOpts{
			Host: "127.0.0.1", Port: server.RANDOM_PORT,
			// The consumers are in files, because the session's record is: a session
			// without its consumers would receive nothing any more.
			ConsumerInactiveThreshold: natsConsumerIdle,
			MaxAckPending:             natsAckPending,
		},
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("couldn't set up the message engine: %w", err)
	}
	srv.SetLoggerV2(&natsLog{log: n.o.Log, ill: n.fellIll, now: n.o.Now}, false, false, false)
	n.mu.Lock()
	n.srv = srv // Check needs it as soon as the listener accepts
	n.mu.Unlock()
	srv.Start()
	if !srv.ReadyForConnections(natsStart) {
		srv.Shutdown()
		return fmt.Errorf("couldn't start the message engine in %s within %s", n.o.Dir, natsStart)
	}
	n.mu.Lock()
	n.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(opts.MQTT.Port))
	n.mu.Unlock()
	// None of it is a reason not to start: it fails on a full disk, say.
	if err := errors.Join(n.boundStreams(), n.sweepRecords(true)); err != nil {
		n.o.Log.Error("message store not put in order", "error", err)
	}
	return nil
}

// Traits of nats-server: MQTT 3.1.1 and topics that make good subjects.
func (n *NATS) Traits() Traits {
	return Traits{Level: 4, BadTopic: natsBadTopic, Resume: n.Resume, Forget: n.Forget, Wraps: true}
}

func natsBadTopic(t string) bool { return len(t) > natsMaxTopic || !topics.FitsNATS(t) }

// Dial opens a session with a token of its own and allow-lists for its subjects.
func (n *NATS) Dial(ctx context.Context, s countersign.Session, p countersign.Permissions) (*Backend, error) {
	u := &server.User{Username: s.Device, Permissions: natsPermissions(p)}
	if !s.NotAfter.IsZero() {
		u.ConnectionDeadline = s.NotAfter.Add(natsGrace)
	}
	return n.dial(ctx, natsID(s.Device, s.ClientID), u)
}

func (n *NATS) dial(ctx context.Context, id string, u *server.User) (*Backend, error) {
	token := rand.Text()
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil, errors.New("couldn't reach the message engine: it is closed")
	}
	if n.ill {
		n.mu.Unlock()
		return nil, errors.New("couldn't reach the message engine: its store failed, see the log")
	}
	n.grants[token] = grant{u, n.o.Now().Add(natsTokenLife)}
	n.sweep()
	addr := n.addr
	n.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("couldn't reach the message engine: %w", err)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(natsReadBuffer) // else the kernel would hold up to 6 MiB for a client that takes nothing
	}
	return &Backend{Conn: conn, ClientID: id, Username: u.Username, Password: []byte(token)}, nil
}

// natsReadBuffer is what the kernel may hold of what the engine sends.
const natsReadBuffer = 64 << 10

// sweepAbove is how many unused tokens there may be before the stale ones go.
// A token is normally spent within a millisecond.
const sweepAbove = 1024

func (n *NATS) sweep() {
	if len(n.grants) < sweepAbove {
		return
	}
	now := n.o.Now()
	for t, g := range n.grants {
		if now.After(g.expires) {
			delete(n.grants, t)
		}
	}
}

// Check spends the token of a connection; nats-server calls it.
func (n *NATS) Check(c server.ClientAuthentication) bool {
	token := c.GetOpts().Password
	n.mu.Lock()
	g, ok := n.grants[token]
	delete(n.grants, token)
	srv := n.srv
	n.mu.Unlock()
	if !ok || n.o.Now().After(g.expires) {
		return false
	}
	u := *g.user
	account, err := srv.LookupAccount(server.DEFAULT_GLOBAL_ACCOUNT)
	if err != nil {
		return false
	}
	u.Account = account
	c.RegisterUser(&u)
	return true
}

// natsID is the client identifier at the engine, which takes no dots and blanks.
// The first half names the device, so that Purge finds all of its sessions.
func natsID(device, client string) string { return natsIDPrefix(device) + short(client) }

func natsIDPrefix(device string) string { return short(device) + "-" }

func short(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:12]) // 96 bits: no collision to be found or met
}

func natsPermissions(p countersign.Permissions) *server.Permissions {
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: natsSubjects(p.Publish.Allow)},
		Subscribe: &server.SubjectPermission{Allow: natsSubjects(p.Subscribe.Allow)},
	}
}

// natsSubjects are the subjects of topic filters. The list is never empty: an
// empty allow-list would allow everything.
func natsSubjects(filters []string) []string {
	return append([]string{"_nothing"}, topics.NATSSubjects(filters)...)
}

// Publish is Platform's.
func (n *NATS) Publish(ctx context.Context, topic string, payload []byte) error {
	return n.send(ctx, 0, topic, payload)
}

// Unretain is Platform's.
func (n *NATS) Unretain(ctx context.Context, topic string) error {
	return n.send(ctx, flagRetain, topic, nil)
}

// send publishes as the platform. One connection serves all calls; after a failure
// the next call opens another.
func (n *NATS) send(ctx context.Context, head byte, topic string, payload []byte) error {
	if natsBadTopic(topic) {
		return countersign.Errorf(countersign.BadRequest, "the engine does not take the topic %.80q", topic)
	}
	pub := &n.publisher
	pub.Lock()
	defer pub.Unlock()
	if pub.p == nil {
		p, err := n.platform(ctx)
		if err != nil {
			return err
		}
		pub.p = p
	}
	err := pub.p.publish(ctx, head, topic, payload)
	if err != nil && countersign.CodeOf(err) != countersign.BadRequest {
		pub.p.close()
		pub.p = nil
	}
	return err
}

// Subscribe is Platform's.
func (n *NATS) Subscribe(ctx context.Context, filter string, receive func(string, []byte)) error {
	if natsBadTopic(filter) {
		return countersign.Errorf(countersign.BadRequest, "the engine does not take the filter %.80q", filter)
	}
	p, err := n.platform(ctx)
	if err != nil {
		return err
	}
	return p.subscribe(ctx, filter, receive)
}

func (n *NATS) platform(ctx context.Context) (*platform, error) {
	b, err := n.dial(ctx, platformID(), &server.User{Username: platformUser})
	if err != nil {
		return nil, err
	}
	p, err := newPlatform(ctx, b, n.o.Now)
	if err != nil {
		return nil, err
	}
	p.wraps = true
	return p, nil
}

// Purge ends the stored sessions of a device the way MQTT does it: by a clean
// session with the same client identifier. It reads all stored sessions once.
func (n *NATS) Purge(ctx context.Context, device string) error {
	ids, err := n.sessionsOf(ctx, device)
	if err != nil {
		return fmt.Errorf("couldn't list the stored sessions of %s: %w", device, err)
	}
	for _, id := range ids {
		if err := n.Drop(ctx, id); err != nil {
			return fmt.Errorf("couldn't drop a stored session of %s: %w", device, err)
		}
	}
	return nil
}

// Drop is Keeper's.
func (n *NATS) Drop(ctx context.Context, id string) error {
	b, err := n.dial(ctx, id, &server.User{Username: platformUser})
	if err != nil {
		return err
	}
	p, err := newPlatform(ctx, b, n.o.Now)
	if err != nil {
		return err
	}
	p.close()
	return nil
}

// sessionsOf lists the stored sessions of a device by their engine-side identifiers.
func (n *NATS) sessionsOf(ctx context.Context, device string) ([]string, error) {
	js, done, err := n.jetstream()
	if err != nil {
		return nil, err
	}
	defer done()
	var ids []string
	prefix := natsIDPrefix(device)
	err = eachRecord(ctx, js, func(_ jetstream.Stream, r natsRecord) error {
		if strings.HasPrefix(r.ID, prefix) {
			ids = append(ids, r.ID)
		}
		return nil
	})
	return ids, err
}

// Close stops the engine and waits until its files are closed.
func (n *NATS) Close() error {
	n.mu.Lock()
	if !n.closed {
		close(n.stop)
	}
	n.closed = true
	n.mu.Unlock()
	n.reviver.Wait()
	n.publisher.Lock()
	if n.publisher.p != nil {
		n.publisher.p.close()
		n.publisher.p = nil
	}
	n.publisher.Unlock()
	n.srv.Shutdown()
	n.srv.WaitForShutdown()
	return nil
}
