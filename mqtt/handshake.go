package mqtt

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"time"
	"unicode"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

// refusal ends a connection before its session: what goes into the CONNACK.
type refusal struct {
	Refusal
	reason string
}

func (r *refusal) Error() string { return r.reason }

func refuse(v3 byte, v5 Reason, reason string) error { return &refusal{Refusal{v3, v5}, reason} }

// protocol is what people call what the session speaks.
func (x *session) protocol() string {
	name := "MQTT 3.1.1"
	switch {
	case x.connect.level == 5:
		name = "MQTT 5"
	case x.connect.bridge:
		name = "MQTT 3.1.1 bridge"
	}
	if x.web != nil {
		name += " over WebSocket"
	}
	return name
}

// handle serves one connection that passed the TLS handshake.
func (s *Server) handle(ctx context.Context, c *edge.Conn) {
	_ = c.SetReadDeadline(s.Now().Add(s.Limits.Connect))
	s.talk(ctx, s.newSession(c, c))
}

// stream carries the packets of a connection: the connection, or a WebSocket on it.
type stream interface {
	io.Reader
	deadlineWriter
}

func (s *Server) newSession(c *edge.Conn, via stream) *session {
	x := &session{srv: s, conn: c, in: frameReader{src: via, max: maxConnect}, now: s.Now}
	x.down = outbox{dst: via, ended: x.ended, now: s.Now, stall: s.Limits.Stall, takesNow: c.TakesNow}
	return x
}

// talk reads CONNECT, within the read deadline that is set, and serves the session.
func (s *Server) talk(ctx context.Context, x *session) {
	c := x.conn
	defer x.in.release()
	f, err := x.in.next()
	if err != nil {
		s.Log.DebugContext(ctx, "no CONNECT", "remote", c.Remote, "error", err)
		if _, ok := errors.AsType[*protocolError](err); ok {
			s.count.malformed.Add(1)
		}
		return
	}
	x.connect, err = parseConnect(f)
	if err == nil {
		s.count.connects.Add(1)
		err = checkClientID(x.connect)
	}
	x.describe()
	if err == nil && x.connect.hasMethod {
		err = x.authenticate(ctx)
	}
	if err != nil {
		x.refuse(ctx, err)
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	x.in.max = s.Limits.MaxPacket
	x.live = s.Index.Register(c, x.farewell)
	defer x.live.Remove()
	if err := x.admit(ctx); err != nil {
		x.refuse(ctx, err)
		return
	}
	release := s.claim(x.claimKey(), x.live)
	defer release()
	x.account = s.stock.enter(x.info.Device, x.budget)
	if err := x.open(ctx); err != nil {
		s.stock.leave(x.account, x.stored, nil, s.Now())
		x.abandon()
		x.refuse(ctx, err)
		return
	}
	x.run(ctx)
}

// checkClientID holds the identifier against what every gateway asks. Whether it
// fits the device is the Gatekeeper's to say.
func checkClientID(c *connect) error {
	switch {
	case len(c.clientID) > maxClientID:
		return refuse(connBadClientID, BadClientID, "the client identifier is longer than 257 bytes")
	case c.clientID == "" && c.level == 4 && !c.cleanStart: // [MQTT-3.1.3-8]
		return refuse(connBadClientID, BadClientID, "an empty client identifier needs a clean session")
	}
	return nil
}

// asks is the connection as the Gatekeeper sees it.
func (x *session) asks() countersign.Connection {
	c := x.connect
	a := countersign.Connection{
		Gateway: x.srv.Gateway, Remote: x.conn.Remote, Protocol: x.protocol(), ClientID: c.clientID, Peer: x.conn.Peer(),
		Username: c.username, Password: c.password, Hello: x.conn.Hello, Software: x.software,
	}
	if x.exchange != nil {
		a.Exchange = x.exchange.Exchange
	}
	return a
}

// describe notes what the client says of itself: what a page's browser says, and
// with a certificate the user name, which some SDKs use for that.
func (x *session) describe() {
	if len(x.conn.Peer()) > 0 && x.connect.username != "" && x.connect.password == nil {
		x.software = x.connect.username
	}
	n := 0
	x.software = strings.Map(func(r rune) rune {
		if n++; n > maxSoftware || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, x.software)
}

// admit asks the Gatekeeper and holds the will against the permissions.
func (x *session) admit(ctx context.Context) error {
	s, c := x.srv, x.connect
	ask := x.asks()
	v := s.Gatekeeper.Admit(ctx, ask)
	c.password = nil
	if !v.Allow {
		r := RefusalOf(v.Code)
		return refuse(r.V3, r.V5, v.Reason)
	}
	if x.exchange != nil && !x.exchange.done { // whatever else was shown: this was asked for
		return refuse(connNotAuthorized, NotAuthorized, "the authentication failed")
	}
	if c.clientID == "" {
		c.clientID = v.Device + ":" + strings.ToLower(rand.Text()[:12])
		x.assigned = c.clientID
	}
	x.info = countersign.Session{
		ID: strings.ToLower(rand.Text()), Device: v.Device, Fleet: v.Fleet, Cert: v.Cert, Credential: v.Credential, Scope: v.Scope,
		Gateway: s.Gateway, Protocol: ask.Protocol, ClientID: c.clientID, Hello: ask.Hello, Software: ask.Software,
		Remote: ask.Remote, Since: s.Now(), NotAfter: v.NotAfter, Permissions: v.Permissions,
	}
	x.perms, x.budget = withInbox(v.Permissions, x.inbox()), v.Budget.WithDefaults()
	x.traits = s.Engine.Traits()
	// The engine knows who is no device by the session's name alone, which is
	// another each time.
	if v.Ephemeral || strings.Contains(v.Device, "/") {
		x.ephemeral, c.cleanStart, c.sessionExpiry = true, true, 0
	}
	if err := x.admitWill(); err != nil {
		return err
	}
	if e := x.live.Admit(x.info, x.budget.Sessions); e != nil {
		if e.Code == countersign.OverBudget {
			x.exceeded(countersign.BudgetSessions, int64(x.budget.Sessions))
		}
		r := RefusalOf(e.Code)
		return refuse(r.V3, r.V5, e.Message)
	}
	if w := c.will; w != nil && w.retain && len(w.payload) > 0 && !x.mayRetainMore(w.topic, len(w.payload)+len(w.props)) {
		w.retain = false // it is published all the same
	}
	if s.closing.Load() { // Close may have looked at the index before this was in it
		return refuse(connUnavailable, ServerUnavailable, "the gateway is stopping")
	}
	return nil
}

func (x *session) admitWill() error {
	w := x.connect.will
	if w == nil {
		return nil
	}
	if x.connect.bridge && strings.HasPrefix(w.topic, "$SYS/") {
		// A bridge tells the state of its connection where the other broker's own state
		// is. That is no topic of a device, and no reason to keep the bridge out.
		x.connect.will = nil
		return nil
	}
	allowed := x.mayPublish(w.topic) && (!w.retain || x.mayRetain(w.topic))
	x.judged("will", w.topic, allowed)
	if !allowed {
		return refuse(connNotAuthorized, NotAuthorized, "the will may not be published to its topic")
	}
	if x.badTopic(w.topic) {
		return refuse(connNotAuthorized, BadTopicName, "the engine does not take the will's topic")
	}
	if !x.traits.Wraps {
		return nil
	}
	if p := wrapWill(w); len(p) > maxBinary {
		return refuse(connNotAuthorized, PacketTooLarge, "the will is too large with its properties")
	} else if p != nil {
		w.payload = p
	}
	return nil
}

// refuse answers a CONNECT that err kept from becoming a session, and leaves the
// peer a moment to read it.
func (x *session) refuse(ctx context.Context, err error) {
	s, answer := x.srv, []byte(nil)
	level := x.connect.level
	if r, ok := errors.AsType[*refusal](err); ok {
		s.count.refused.Add(1)
		answer = refusalPacket(level, r)
	} else if v, ok := errors.AsType[*badVersion](err); ok {
		s.count.refused.Add(1)
		answer = refusalPacket(4, &refusal{Refusal: Refusal{V3: connBadVersion}})
		if v.level > 5 {
			answer = refusalPacket(5, &refusal{Refusal: Refusal{V5: UnsupportedVersion}})
		}
	} else if p, ok := errors.AsType[*protocolError](err); ok {
		s.count.malformed.Add(1)
		if level == 5 { // MQTT 3.1.1 has no code for it: close, [MQTT-3.1.4-1]
			answer = refusalPacket(5, &refusal{Refusal{V5: p.code}, p.text})
		}
	}
	s.Log.DebugContext(ctx, "connection refused", "remote", x.conn.Remote, "device", x.info.Device, "error", err)
	if max := x.connect.maxPacket; max > 0 && len(answer) > int(max) {
		answer = packet(pktConnack<<4, []byte{0, answer[3], 0}) // [MQTT-3.2.2-19]
	}
	if answer != nil && x.down.send(answer) == nil && x.down.flush() == nil {
		x.linger(nil)
	}
}

func refusalPacket(level byte, r *refusal) []byte {
	a := connack{code: r.V3}
	if level == 5 {
		a.code = byte(r.V5)
		if r.reason != "" {
			a.props = appendTextProp(nil, propReasonString, clip(r.reason))
		}
	}
	return a.encode(level)
}

// linger ends our side, with a last packet if there is one, and waits until the peer
// has ended its own, so that the last answer is not lost to a reset.
func (x *session) linger(last []byte) {
	limit := x.now().Add(lingerTimeout)
	_ = x.conn.SetDeadline(limit)
	x.down.until(limit)
	x.down.last(func(bool) []byte { return last })
	drain(x.conn)
}

// drain ends our side and waits for the peer's end, within the deadline that is set.
func drain(c *edge.Conn) {
	if c.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c, lingerBytes)
	}
}
