package broker_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/topics"
)

// pending is a message of QoS 1 or 2 that a session of the model has not acknowledged.
type pending struct {
	text     string
	qos      byte
	retain   bool
	ids      []uint32
	expires  time.Time
	sent     bool // once, on any connection
	flying   bool // on this one
	released bool
}

// state is a session of the model. Nothing is in it that a reader of the standard would
// not expect there.
type state struct {
	name   string
	expiry time.Duration
	kept   bool
	left   time.Time
	subs   map[string]broker.Subscription
	queue  []*pending
	conn   *client // nil: none
	limit  int
	room   bool
	want   []string        // deliveries on this connection
	ended  map[uint16]bool // identifiers that were acknowledged over this connection
}

func (s *state) pump(now time.Time) {
	flying := 0
	for _, e := range s.queue {
		if e.flying {
			flying++
		}
	}
	for i := 0; s.conn != nil && i < len(s.queue) && flying < s.limit; i++ {
		switch e := s.queue[i]; {
		case e.flying:
			continue
		case e.released:
		case !e.sent && !e.expires.IsZero() && !now.Before(e.expires):
			s.queue = slices.Delete(s.queue, i, i+1)
			i--
			continue
		case !s.room:
			return
		default:
			s.want = append(s.want, delivered(e.text, e.qos, e.retain, e.ids))
		}
		s.queue[i].flying, s.queue[i].sent = true, true
		flying++
	}
}

func delivered(text string, qos byte, retain bool, ids []uint32) string {
	ids = slices.Sorted(slices.Values(ids))
	return fmt.Sprintf("%s qos=%d retain=%t ids=%v", text, qos, retain, ids)
}

// machine is the core beside its model.
type machine struct {
	t        *rapid.T
	url      string
	db       *store.DB
	b        *broker.Broker
	sessions map[string]*state
	retained map[string]*broker.Message
	count    int
}

func (m *machine) open() {
	var err error
	m.db, err = store.Open(context.Background(), store.Options{URL: m.url, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		m.t.Fatal(err)
	}
	m.start()
}

func (m *machine) start() {
	var err error
	m.b, err = broker.Open(context.Background(), broker.Options{DB: m.db, Node: "one", Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) names() []string { return []string{"x", "y", "z"} }

// some draws a session with a connection. Where there is none, a client connects.
func (m *machine) some() *state {
	var all []*state
	for _, name := range m.names() {
		if s := m.sessions[name]; s != nil && s.conn != nil {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return m.enter(m.t)
	}
	return rapid.SampledFrom(all).Draw(m.t, "client")
}

// leave is the end of a connection.
func (m *machine) leave(s *state) {
	s.conn = nil
	s.left = time.Now()
	for _, e := range s.queue {
		e.flying = false
	}
	if !s.kept || s.expiry == 0 {
		delete(m.sessions, s.name)
	}
}

func (m *machine) connect(t *rapid.T) { m.enter(t) }

// enter connects a client, and returns its session.
func (m *machine) enter(t *rapid.T) *state {
	h := broker.Hello{
		ClientID: rapid.SampledFrom(m.names()).Draw(t, "client"), Clean: rapid.IntRange(0, 3).Draw(t, "clean") == 0, Kept: 4,
		Expiry:     rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, time.Hour}).Draw(t, "expiry"),
		ReceiveMax: rapid.SampledFrom([]uint16{0, 1, 2, 5}).Draw(t, "receive maximum"),
	}
	h.Device = h.ClientID
	s := m.sessions[h.ClientID]
	if s != nil && s.conn != nil {
		m.leave(s)
		s = m.sessions[h.ClientID]
	}
	present := s != nil && !h.Clean
	if !present {
		s = &state{name: h.ClientID, kept: h.Expiry > 0, subs: map[string]broker.Subscription{}}
		m.sessions[s.name] = s
	}
	s.expiry, s.limit, s.room, s.want, s.ended = h.Expiry, broker.DefaultInflight, true, nil, map[uint16]bool{}
	if h.ReceiveMax > 0 {
		s.limit = int(h.ReceiveMax)
	}
	s.conn = &client{hold: true, room: -1, changed: make(chan struct{}, 1)}
	conn, got, err := m.b.Connect(context.Background(), h, s.conn)
	if err != nil || got != present {
		t.Fatalf("connect %s: got session present %t, error %v; want %t", s.name, got, err, present)
	}
	s.conn.conn = conn
	conn.Start()
	s.pump(time.Now())
	m.settle() // the queue is read meanwhile
	return s
}

func (m *machine) disconnect(t *rapid.T) {
	s := m.some()
	var expiry *time.Duration
	if rapid.Bool().Draw(t, "with an expiry") {
		expiry = new(rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "expiry"))
		s.expiry = *expiry
	}
	s.conn.conn.Close(false, expiry)
	m.leave(s)
}

func (m *machine) subscribe(t *rapid.T) {
	s := m.some()
	sub := broker.Subscription{
		Filter: rapid.SampledFrom([]string{"a/b", "a/+", "a/#", "#", "+/c", "$s/+"}).Draw(t, "filter"),
		QoS:    rapid.Byte().Draw(t, "QoS") % 3, NoLocal: rapid.Bool().Draw(t, "no local"), AsPublished: rapid.Bool().Draw(t, "as published"),
		ID: rapid.Uint32Range(0, 3).Draw(t, "identifier"), Handling: rapid.Byte().Draw(t, "handling") % 3,
	}
	if len(s.queue) > 0 || !s.room || s.limit < 5 {
		sub.Handling = 2 // where others wait the model knows no order
	}
	_, old := s.subs[sub.Filter]
	s.subs[sub.Filter] = sub
	if codes := s.conn.conn.Subscribe(context.Background(), []broker.Subscription{sub}); codes[0] != sub.QoS {
		t.Fatalf("subscribe: got reason code %#x", codes[0])
	}
	s.conn.conn.Retained()
	s.pump(time.Now()) // what has expired meanwhile goes
	m.settle()
	if sub.Handling == 2 || sub.Handling == 1 && old {
		return
	}
	want := map[string]*pending{} // of retained messages, which come in no order
	for topic, msg := range m.retained {
		if topics.Covers(sub.Filter, topic) {
			e := &pending{text: string(msg.Payload), qos: min(msg.QoS, sub.QoS), retain: true, sent: true, flying: true}
			if sub.ID > 0 {
				e.ids = []uint32{sub.ID}
			}
			want[e.text] = e
		}
	}
	for _, d := range s.conn.got[len(s.want):] {
		if e := want[string(d.Payload)]; e != nil {
			delete(want, e.text)
			s.want = append(s.want, delivered(e.text, e.qos, true, e.ids))
			if e.qos > 0 {
				s.queue = append(s.queue, e)
			}
		}
	}
	if len(want) > 0 {
		t.Fatalf("%s: got %d retained messages less than there are", s.name, len(want))
	}
}

func (m *machine) unsubscribe(t *rapid.T) {
	s := m.some()
	filter := rapid.SampledFrom([]string{"a/b", "a/+", "a/#", "#"}).Draw(t, "filter")
	want := broker.NoSubscription
	if _, ok := s.subs[filter]; ok {
		want = broker.Success
	}
	if codes := s.conn.conn.Unsubscribe(context.Background(), []string{filter}); codes[0] != want {
		t.Fatalf("unsubscribe: got reason code %#x, want %#x", codes[0], want)
	}
	delete(s.subs, filter)
}

func (m *machine) publish(t *rapid.T) {
	m.count++
	msg := &broker.Message{
		Topic:   rapid.SampledFrom([]string{"a/b", "a/c", "b/c", "$s/x"}).Draw(t, "topic"),
		Payload: fmt.Append(nil, "m", m.count), QoS: rapid.Byte().Draw(t, "QoS") % 3, Retain: rapid.IntRange(0, 3).Draw(t, "retain") == 0, Device: "pub",
	}
	switch {
	case msg.Retain && rapid.IntRange(0, 2).Draw(t, "ends") == 0:
		msg.Payload = nil
	case !msg.Retain && rapid.IntRange(0, 2).Draw(t, "expires") == 0:
		msg.Expires = time.Now().Add(time.Minute)
	}
	var from *state
	if rapid.Bool().Draw(t, "by a client") {
		from = m.some()
		m.publishAs(from, msg)
	} else if err := m.b.Publish(context.Background(), msg); err != nil {
		t.Fatal(err)
	}
	if msg.Retain {
		if m.retained[msg.Topic] = msg; len(msg.Payload) == 0 {
			delete(m.retained, msg.Topic)
		}
	}
	for _, s := range m.sessions {
		m.route(s, msg, from)
	}
}

// publishAs publishes for a client; a message of QoS 2 twice, as after a lost PUBREC.
func (m *machine) publishAs(s *state, msg *broker.Message) {
	id := uint16(m.count%60000) + 1
	before := len(s.conn.acks)
	c := s.conn.conn
	want := map[byte][]string{1: {fmt.Sprintf("4 %d 0x0", id)}, 2: {fmt.Sprintf("5 %d 0x0", id), fmt.Sprintf("5 %d 0x0", id), fmt.Sprintf("7 %d 0x0", id)}}
	if err := c.Publish(msg, id); err != nil {
		m.t.Fatal(err)
	}
	if msg.QoS == 2 {
		if err := c.Publish(msg, id); err != nil {
			m.t.Fatal(err)
		}
		m.settle()
		c.Release(id)
	}
	c.Flush()
	m.settle()
	var got []string // PUBREL is of what it receives
	for _, a := range s.conn.acks[before:] {
		if !strings.HasPrefix(a, "6") {
			got = append(got, a)
		}
	}
	if !slices.Equal(got, want[msg.QoS]) {
		m.t.Fatalf("%s: got acknowledgments %q, want %q", s.name, got, want[msg.QoS])
	}
}

func (m *machine) route(s *state, msg *broker.Message, from *state) {
	e := &pending{text: string(msg.Payload), expires: msg.Expires}
	matches := false
	for _, sub := range s.subs {
		if !topics.Covers(sub.Filter, msg.Topic) || sub.NoLocal && from == s {
			continue
		}
		matches = true
		e.qos = max(e.qos, min(sub.QoS, msg.QoS))
		e.retain = e.retain || sub.AsPublished && msg.Retain
		if sub.ID > 0 {
			e.ids = append(e.ids, sub.ID)
		}
	}
	switch {
	case !matches || s.conn == nil && (e.qos == 0 || !s.kept):
	case e.qos > 0:
		s.queue = append(s.queue, e)
		s.pump(time.Now())
	case s.room:
		s.want = append(s.want, delivered(e.text, 0, e.retain, e.ids))
	}
}

func (m *machine) acknowledge(t *rapid.T) {
	s := m.some()
	var flying []*pending
	for _, e := range s.queue {
		if e.flying {
			flying = append(flying, e)
		}
	}
	if len(flying) == 0 {
		return
	}
	e := rapid.SampledFrom(flying).Draw(t, "message")
	// A retained message that was asked for twice is in flight twice, each time under an
	// identifier of its own.
	text, before := delivered(e.text, e.qos, e.retain, e.ids), 0
	for _, one := range flying[:slices.Index(flying, e)] {
		if delivered(one.text, one.qos, one.retain, one.ids) == text {
			before++
		}
	}
	var ids []uint16
	for _, d := range s.conn.got {
		if d.QoS > 0 && !s.ended[d.ID] && delivered(string(d.Payload), d.QoS, d.Retain, d.SubIDs) == text {
			ids = append(ids, d.ID)
		}
	}
	if before >= len(ids) { // it was received on an earlier connection
		return
	}
	id := ids[before]
	if e.qos == 2 && !e.released {
		s.conn.conn.Acknowledge(broker.Pubrec, id, broker.Success)
		e.released = true
		m.settle()
		if last := s.conn.acks[len(s.conn.acks)-1]; last != fmt.Sprintf("6 %d 0x0", id) {
			t.Fatalf("%s: got %q, want PUBREL", s.name, last)
		}
		return
	}
	kind := broker.Puback
	if e.qos == 2 {
		kind = broker.Pubcomp
	}
	s.conn.conn.Acknowledge(kind, id, broker.Success)
	s.ended[id] = true
	s.queue = slices.DeleteFunc(s.queue, func(one *pending) bool { return one == e })
	s.pump(time.Now())
}

// room has a client take no more, or go on.
func (m *machine) room(*rapid.T) {
	s := m.some()
	s.room = !s.room
	s.conn.mu.Lock()
	if s.conn.room = 0; s.room {
		s.conn.room = -1
	}
	s.conn.mu.Unlock()
	s.conn.conn.Wake()
	s.pump(time.Now())
}

func (m *machine) sleep(t *rapid.T) {
	time.Sleep(rapid.SampledFrom([]time.Duration{time.Second, 30 * time.Second, time.Hour}).Draw(t, "time"))
}

func (m *machine) restart(t *rapid.T) { m.again(t, false) }
func (m *machine) crash(t *rapid.T)   { m.again(t, true) }

func (m *machine) again(t *rapid.T, crash bool) {
	if crash {
		_ = m.db.Close() // nothing is written from now on
		_ = m.b.Close(context.Background())
		m.open()
	} else {
		if err := m.b.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		m.start()
	}
	for _, s := range m.sessions {
		if s.conn != nil {
			m.leave(s)
			for _, e := range s.queue {
				e.sent = true // the core cannot know
			}
		}
	}
}

// settle waits until the core has nothing to do, and the record has all.
func (m *machine) settle() {
	time.Sleep(time.Second / 2)
	synctest.Wait()
}

func (m *machine) check(t *rapid.T) {
	m.settle()
	var subs, queued int
	for _, s := range m.sessions {
		if s.conn == nil && !time.Now().Before(s.left.Add(s.expiry)) {
			delete(m.sessions, s.name)
			continue
		}
		subs += len(s.subs)
		queued += len(s.queue)
		if s.conn == nil {
			continue
		}
		var got []string
		for _, d := range s.conn.got {
			got = append(got, delivered(string(d.Payload), d.QoS, d.Retain, d.SubIDs))
		}
		if !slices.Equal(got, s.want) {
			t.Fatalf("%s:\n got %q\nwant %q", s.name, got, s.want)
		}
	}
	sum, err := m.b.TotalUsage(context.Background())
	if err != nil || sum.Sessions+sum.Kept != len(m.sessions) || sum.Subscriptions != subs || sum.Queued != queued || sum.Retained != len(m.retained) {
		t.Fatalf("got %+v, %v; want %d sessions, %d subscriptions, %d queued, %d retained", sum, err, len(m.sessions), subs, queued, len(m.retained))
	}
}

// TestSessionsFollowTheModel holds sessions against a model that knows no journal, page
// or lock: whatever order clients come, go, subscribe, publish and acknowledge in, and
// whenever the core is restarted or killed, each receives what the standard says.
func TestSessionsFollowTheModel(t *testing.T) {
	// Fewer runs than rapid's 100 and longer ones than its 30 acts: it takes some before
	// there is anything to lose.
	for name, value := range map[string]string{"rapid.checks": "60", "rapid.steps": "100"} {
		f := flag.Lookup(name)
		if f.Value.String() != f.DefValue {
			continue // as it was asked for
		}
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	folder := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		file := fmt.Sprintf("%s/%d.db", folder, n)
		var failed any
		synctest.Test(t, func(*testing.T) { // a bubble for each run: rapid itself needs the real clock
			defer func() { failed = recover() }()
			m := &machine{t: rt, url: "sqlite:" + file, sessions: map[string]*state{}, retained: map[string]*broker.Message{}}
			m.open()
			defer func() {
				_ = m.b.Close(context.Background())
				_ = m.db.Close()
			}()
			rt.Repeat(map[string]func(*rapid.T){
				"connect": m.connect, "connect more": m.connect, "connect again": m.connect, "disconnect": m.disconnect, "subscribe": m.subscribe, "subscribe more": m.subscribe, "unsubscribe": m.unsubscribe,
				"publish": m.publish, "publish more": m.publish, "publish again": m.publish,
				"acknowledge": m.acknowledge, "acknowledge more": m.acknowledge, "room": m.room,
				"sleep": m.sleep, "restart": m.restart, "crash": m.crash, "": m.check,
			})
		})
		_ = os.Remove(file)
		if fmt.Sprintf("%T", failed) == "rapid.invalidData" { // it drew more than a run may: rapid makes another one
			rt.Skip(failed)
		}
		if failed != nil {
			panic(failed)
		}
	})
}
