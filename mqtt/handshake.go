package mqtt

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

// handle opens the session of a connection that passed the TLS handshake.
func (s *Server) handle(ctx context.Context, c *edge.Conn) func() {
	_ = c.SetReadDeadline(s.Now().Add(s.Limits.Connect))
	return s.greet(ctx, s.newSession(c, c))
}

// stream carries the packets of a connection: the connection, or a WebSocket on it.
type stream interface {
	io.Reader
	deadlineWriter
}

func (s *Server) newSession(c *edge.Conn, via stream) *session {
	x := &session{srv: s, conn: c, in: frameReader{src: via, max: maxConnect}, now: s.Now}
	x.down = outbox{dst: via, ended: x.ended, now: s.Now, stall: s.Limits.Stall, room: c.Room}
	return x
}

// greet reads CONNECT, within the read deadline that is set, and admits the session. It
// returns what serves it, or nil.
func (s *Server) greet(ctx context.Context, x *session) (serve func()) {
	c := x.conn
	undo := []func(){x.in.release}
	defer func() {
		if serve == nil {
			for _, f := range slices.Backward(undo) {
				f()
			}
		}
	}()
	if !s.readConnect(ctx, x) {
		return nil
	}
	_ = c.SetReadDeadline(time.Time{})
	x.in.max = s.Limits.MaxPacket
	x.live = s.Index.Register(c, x.farewell)
	undo = append(undo, x.live.Remove)
	if err := x.admit(ctx); err != nil {
		x.refuse(ctx, err)
		return nil
	}
	release := s.claim(x.info, x.live)
	x.account = s.accounts.enter(x.info.Device, x.budget, s.Limits.MaxPacket)
	undo = append(undo, release, func() { s.accounts.leave(x.info.Device, x.account) })
	if err := x.open(ctx); err != nil {
		x.back.abandon()
		x.refuse(ctx, err)
		return nil
	}
	return func() {
		defer x.in.release()
		x.run(ctx)
		release()
		x.live.Remove()
		if x.cleanLeave && x.web == nil && !x.ended() {
			x.awaitEnd()
		}
	}
}

// readConnect reads CONNECT and goes through an authentication of several steps. Where it
// returns false the client has its answer.
func (s *Server) readConnect(ctx context.Context, x *session) bool {
	f, err := x.in.next()
	if err != nil {
		s.Log.DebugContext(ctx, "no CONNECT", "remote", x.conn.Remote, "error", err)
		if _, ok := errors.AsType[*protocolError](err); ok {
			s.count.malformed.Add(1)
		}
		return false
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
		return false
	}
	return true
}

// asks is the connection as the Gatekeeper sees it.
func (x *session) asks() countersign.Connection {
	c := x.connect
	a := countersign.Connection{
		Gateway: x.srv.Gateway, Remote: x.conn.Remote, Protocol: c.protocol(x.web != nil), ClientID: c.clientID, Peer: x.conn.Peer(),
		Username: c.username, Password: c.password, Hello: x.conn.Hello, Software: x.software,
	}
	if x.exchange != nil {
		a.Exchange = x.exchange.Exchange
	}
	return a
}

// describe notes what the client claims about itself: what a page's browser sends, and
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
		return refuseFor(v.Code, v.Reason)
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
	// The back knows who is no device by the session's name alone, which is another each
	// time.
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
		return refuseFor(e.Code, e.Message)
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
		// A bridge publishes the state of its connection where the other broker's own state
		// is. That is no topic of a device, and no reason to keep the bridge out.
		x.connect.will = nil
		return nil
	}
	allowed := x.mayPublish(w.topic) && (!w.retain || x.mayRetain(w.topic))
	x.judged("will", w.topic, allowed)
	if !allowed {
		return refuse(connNotAuthorized, NotAuthorized, "the will may not be published to its topic")
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
	if x.tooLarge(len(answer)) {
		answer = packet(pktConnack<<4, []byte{0, answer[3], 0}) // [MQTT-3.2.2-19]
	}
	if x.tooLarge(len(answer)) { // the client takes no CONNACK at all
		answer = nil
	}
	if answer != nil && x.down.send(answer) == nil && x.down.flush() == nil {
		x.linger(nil)
	}
}
