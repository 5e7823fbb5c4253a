package mqtt

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

// session stands between one device and the engine. Two goroutines serve it: up
// reads the device, down reads the engine. Answers go against the stream, so both
// write to both sides, through the outboxes.
type session struct {
	srv  *Server
	conn *edge.Conn
	web  *webSocket // nil over TCP
	live *edge.Live
	now  func() time.Time

	connect   *connect
	software  string    // what the client says of itself, so far
	assigned  string    // the client identifier, if the gateway chose it
	exchange  *exchange // an authentication of several steps; owned by up
	perms     countersign.Permissions
	budget    countersign.Budget
	account   *account // of its device
	stored    *stored  // what the engine has of it; nil until the engine does
	info      countersign.Session
	stamp     []byte // names the sender in what goes to an MQTT 5 engine
	resumed   bool   // the engine had the session already
	ephemeral bool   // nothing is kept of the session
	traits    Traits
	level     byte // of the engine's side

	in      frameReader // the device's frames; owned by up
	engine  frameReader // the engine's frames; owned by open, then by down
	up      outbox      // to the engine
	down    outbox      // to the device
	backend *Backend

	kept   bool        // shim: the engine keeps the session when its side closes
	done   atomic.Bool // set by end
	over   sync.Once
	ending countersign.Ending // set by over
	last   []byte             // DISCONNECT to send, set by over

	// Owned by up.
	keepAlive   time.Duration // how long the device may be silent; 0: for ever
	aliasesUp   map[uint16]string
	aliasOctets int       // of the topics in it
	aliasMax    uint16    // highest alias the device may use
	flight      int       // MQTT 5: how many QoS 1 and 2 messages of the device may be in flight
	lastTopic   string    // the last one that was found good
	lastRetain  bool      // for retained messages too
	reauthAt    time.Time // when the device may authenticate again
	filters     map[string]struct{}
	heldLast    time.Time // when it was held back last
	heldSince   time.Time // the device publishes more than its budget since then
	fresh       bool      // the engine forgot the QoS 2 messages of an earlier session
	cleanLeave  bool      // the device said goodbye, the will is dropped
	expiry      uint32

	// Owned by down.
	aliasesDown map[uint16]string
	lastDown    string
	missed      bool          // the engine sent what the device did not get
	unreadSince time.Time     // messages are dropped since then because the device does not read
	asked       []retainedAsk // shim: the SUBSCRIBE that was answered last

	// What one direction leaves for the other.
	mu         sync.Mutex
	heldDown   []held // shim: to the device, beyond its Receive Maximum
	heldSize   int
	slot       sync.Cond                // signals that inDown shrank or the session is over
	inUp       map[uint16]struct{}      // MQTT 5: QoS 1 and 2 from the device, not yet acknowledged
	inDown     map[uint16]bool          // where the gateway counts: QoS 1 and 2 to the device, not yet acknowledged; false once PUBREL went out
	refusedUp  map[uint16]bool          // QoS 2 from the device, refused, awaiting its PUBREL
	refusedDn  map[uint16]bool          // QoS 2 to the device, refused, awaiting the engine's PUBREL
	subAnswers map[uint16][]byte        // codes to merge into SUBACK; fromEngine where it answers
	unAnswers  map[uint16][]byte        // the same for UNSUBACK
	asking     map[uint16][]retainedAsk // shim: SUBSCRIBE packets that await their SUBACK
	told       []uint64                 // hashes of the acts that were told as allowed
	deniedAt   time.Time
	suppressed int
}

// maxPending bounds each table of packet identifiers that wait for an answer. It
// is the Receive Maximum that the shim announces, too.
const maxPending = 256

// fromEngine marks a filter that the engine answers for. It is no reason code.
const fromEngine = 0xFF

func (x *session) shim() bool { return x.connect.level == 5 && x.level == 4 }

func (x *session) ended() bool {
	if x.live == nil {
		return false
	}
	_, ended := x.live.Ended()
	return ended
}

// open gets the session onto the engine and greets the device.
func (x *session) open(ctx context.Context) error {
	c := x.connect
	x.level = min(x.traits.Level, c.level)
	x.expiry = c.sessionExpiry
	if x.level == 5 {
		x.stamp = stampOf(x.info.Device, x.info.Fleet)
	}
	x.slot.L = &x.mu
	x.flight = maxPending
	x.aliasMax = maxAliases
	c.aliasMax = min(c.aliasMax, maxAliases)
	x.keepAlive = x.allowedSilence(time.Duration(c.keepAlive) * time.Second)
	if x.shim() && (c.cleanStart && c.sessionExpiry > 0 || !c.cleanStart && x.srv.expired(x.claimKey(), x.now())) {
		// 3.1.1 has one flag for two things: start afresh, then keep. And its sessions
		// do not expire.
		if err := x.wipe(ctx); err != nil {
			return x.engineRefusal(ctx, err)
		}
	}
	ask := x.engineConnect()
	x.kept = x.shim() && !ask.cleanStart
	answer, err := x.dial(ctx, ask)
	if err != nil {
		return x.engineRefusal(ctx, err)
	}
	if answer.code != 0 {
		return x.engineCode(ctx, answer)
	}
	x.resumed = answer.present
	x.stored = x.srv.stock.begin(x.account, x.backend.ClientID, x.resumed)
	if x.shim() {
		answer.props = x.shimConnackProps()
	} else if c.level == 5 {
		if answer.props, err = x.passConnackProps(answer.props); err != nil {
			return x.engineRefusal(ctx, err)
		}
	}
	// After the dial, so that a cut which came meanwhile is seen: send looks.
	if err := x.down.send(answer.encode(c.level)); err != nil {
		return err
	}
	if err := x.down.flush(); err != nil {
		return err
	}
	if x.srv.unfinished(x.claimKey()) && x.resumed && x.traits.Resume != nil {
		x.traits.Resume(x.info)
	}
	return nil
}

// dial opens the engine's side with c and reads its answer.
func (x *session) dial(ctx context.Context, c connect) (*connack, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	b, err := x.srv.Engine.Dial(ctx, x.info, x.perms)
	if err != nil {
		return nil, err
	}
	c.clientID, c.username, c.password = b.ClientID, b.Username, b.Password
	x.backend = b
	x.up = outbox{dst: b.Conn, ended: x.ended, now: x.now, stall: x.srv.Limits.Stall}
	x.engine = frameReader{src: b.Conn, max: x.srv.Limits.MaxPacket + maxConnect}
	_ = b.Conn.SetReadDeadline(x.now().Add(engineTimeout))
	if err := x.up.send(c.encode(x.level)); err != nil {
		return nil, err
	}
	if err := x.up.flush(); err != nil {
		return nil, err
	}
	f, err := x.engine.next()
	if err != nil {
		return nil, fmt.Errorf("couldn't read the engine's CONNACK: %w", err)
	}
	_ = b.Conn.SetReadDeadline(time.Time{})
	return parseConnack(f, x.level)
}

// run moves frames until one side is gone, then closes both and reports it.
func (x *session) run(ctx context.Context) {
	s := x.srv
	// A will costs memory for the session's life, the engine has it now.
	x.connect.will, x.connect.props, x.connect.data, x.exchange = nil, nil, nil, nil
	x.down.bound(int(min(x.budget.Unread, math.MaxInt32)), x.downFailed)
	s.count.opened.Add(1)
	s.Gatekeeper.Opened(x.info)
	down := make(chan struct{})
	go func() {
		defer close(down)
		x.finishDown(x.runDown())
	}()
	x.finishUp(x.runUp(ctx))

	x.sayGoodbye()
	x.hangUp(down)
	if x.suppressed > 0 {
		s.Log.InfoContext(ctx, "denied acts not told one by one", "device", x.info.Device, "session", x.info.ID, "count", x.suppressed)
	}
	if x.expiry > 0 && (x.missed || len(x.inDown)+len(x.heldDown) > 0) { // nobody else is there any more
		x.srv.leaveUnfinished(x.claimKey())
	}
	if x.kept {
		x.srv.keepUntil(x.claimKey(), x.expiry, x.now())
	}
	if x.kept && x.expiry == 0 { // it must not outlive the connection
		if err := x.wipe(ctx); err != nil {
			s.Log.WarnContext(ctx, "couldn't end the engine's session", "session", x.info.ID, "error", err)
		}
	}
	var kept *countersign.Session
	if x.expiry > 0 {
		kept = &x.info
	}
	x.drop(ctx, s.stock.leave(x.account, x.stored, kept, x.now()))
	s.count.closed.Add(1)
	s.Gatekeeper.Closed(x.info, x.ending)
}

// end says how the session ended; the first to speak is believed. An ending by
// this side goes before whatever error it caused.
func (x *session) end(e countersign.Ending, last []byte) {
	x.over.Do(func() {
		if ours, ok := x.live.Ended(); ok {
			e, last = ours, nil
		}
		x.ending, x.last = e, last
	})
	x.mu.Lock()
	x.done.Store(true)
	x.slot.Broadcast()
	x.mu.Unlock()
}

func ending(code countersign.EndCode, reason string) countersign.Ending {
	return countersign.Ending{Code: code, Reason: reason}
}

// finishUp names the end that runUp came to.
func (x *session) finishUp(err error) {
	switch {
	case x.cleanLeave:
		x.end(ending(countersign.EndClientLeft, "client left"), nil)
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.end(ending(countersign.EndSilent, "keep-alive expired"), x.disconnect(KeepAliveTimeout, "keep alive expired"))
	case errors.Is(err, errReauth):
		x.end(ending(countersign.EndReauth, "re-authentication failed"), x.disconnect(NotAuthorized, "the device could not authenticate again"))
	case errors.Is(err, errFlood):
		x.overBudget(countersign.BudgetPublishes, int64(x.budget.Publishes), MessageRateTooHigh)
	default:
		x.endOn(err)
	}
}

// finishDown names the end that runDown came to and wakes up.
func (x *session) finishDown(err error) {
	switch {
	case errors.Is(err, errEngineLeft):
		// named by whoever saw it
	case errors.Is(err, errUnread), errors.Is(err, io.EOF) && x.full(): // the engine gives up such a session too
		x.overBudget(countersign.BudgetUnread, x.budget.Unread, QuotaExceeded)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		x.srv.count.engineFailed.Add(1)
		x.end(ending(countersign.EndEngine, "engine closed"), x.disconnect(ServerUnavailable, "the message engine closed the session"))
	default:
		x.endOn(err)
	}
	_ = x.conn.SetReadDeadline(x.now().Add(-time.Second))
}

func (x *session) endOn(err error) {
	if p, ok := errors.AsType[*protocolError](err); ok {
		x.srv.count.malformed.Add(1)
		x.end(ending(countersign.EndProtocol, p.text), x.disconnect(p.code, p.text))
		return
	}
	if errors.Is(err, errStalled) {
		x.end(ending(countersign.EndLost, "the client takes no data"), nil)
		return
	}
	x.end(ending(countersign.EndLost, "network error"), nil)
}

// disconnect is the DISCONNECT for this device; nil before MQTT 5.
func (x *session) disconnect(code Reason, reason string) []byte {
	if x.connect.level < 5 {
		return nil
	}
	return disconnectPacket(code, reason, x.connect.maxPacket)
}

// sayGoodbye sends what end left to say and lets the peer read it.
func (x *session) sayGoodbye() {
	if x.ended() {
		return
	}
	switch {
	case x.ending.Code == countersign.EndBudget: // what the device did not read is in the way
		x.linger(x.last)
	case x.last != nil, x.web != nil && x.cleanLeave: // a page wants to see the WebSocket closed in order
		if x.down.finish(x.last, x.now().Add(lingerTimeout)) {
			x.linger(nil)
		}
	}
}

// hangUp closes the engine's side and waits for down. A cut device's will must
// not be published, so the engine is told that the device left.
func (x *session) hangUp(down <-chan struct{}) {
	_ = x.backend.Conn.SetWriteDeadline(x.now().Add(lingerTimeout))
	if e, ok := x.live.Ended(); ok {
		x.up.last(func(bool) []byte {
			if e.Code == countersign.EndCut {
				return append(x.closeInbox(), leave(true)...)
			}
			return x.closeInbox()
		})
	} else if p := x.closeInbox(); p != nil && !x.cleanLeave && x.up.send(p) == nil {
		_ = x.up.flush()
	}
	// The engine closes once it has dealt with the end. Waiting for that keeps the
	// order if the client comes again at once.
	_ = x.backend.Conn.SetReadDeadline(x.now().Add(lingerTimeout))
	if w, ok := x.backend.Conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	// A device that reads nothing would hold down up. Whoever ended the session
	// closes the socket in a moment, after the last words.
	if x.ended() {
		<-x.live.Done()
	} else {
		x.conn.Abort()
	}
	<-down
	n, _ := io.Copy(io.Discard, x.backend.Conn)
	x.missed = x.missed || n > 0 || x.engine.buffered()
	x.closeBackend()
}

func (x *session) closeBackend() {
	if x.backend != nil {
		_ = x.backend.Conn.Close()
		x.engine.release()
		x.backend = nil
	}
}

// abandon ends the engine's side of a session that did not begin. The engine may have
// its CONNECT, answered or not, and a will with it, which must not be published: a
// client that goes without DISCONNECT is one that was lost. So the engine reads
// DISCONNECT behind CONNECT, and the connection stays until it has.
func (x *session) abandon() {
	if x.backend == nil {
		return
	}
	limit := x.now().Add(lingerTimeout)
	_ = x.backend.Conn.SetDeadline(limit)
	x.up.last(leave)
	if w, ok := x.backend.Conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, x.backend.Conn)
	x.closeBackend()
}

// leave is the goodbye of a client whose will is not to be published.
// An engine that has not read CONNECT is told nothing.
func leave(wrote bool) []byte {
	if !wrote {
		return nil
	}
	return []byte{pktDisconnect << 4, 0}
}

// wipe drops what the engine keeps of the client.
func (x *session) wipe(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // it also tidies up behind a server that stops
	w := session{srv: x.srv, info: x.info, perms: x.perms, now: x.now, level: x.level}
	defer w.closeBackend()
	if _, err := w.dial(ctx, connect{cleanStart: true}); err != nil {
		return err
	}
	w.up.last(leave)
	_ = w.backend.Conn.SetReadDeadline(x.now().Add(lingerTimeout))
	_, _ = io.Copy(io.Discard, w.backend.Conn) // until the engine has done it
	return nil
}

// farewell is what the device reads when this side ends the connection.
func (x *session) farewell(e countersign.Ending) bool {
	code, refused := AdministrativeAction, &refusal{Refusal{connNotAuthorized, NotAuthorized}, e.Reason}
	switch e.Code {
	case countersign.EndExpired:
		code = MaximumConnectTime
	case countersign.EndTakenOver:
		code, refused.Refusal = SessionTakenOver, Refusal{connUnavailable, ServerUnavailable}
	case countersign.EndBudget:
		code, refused.Refusal = QuotaExceeded, Refusal{connUnavailable, QuotaExceeded}
	case countersign.EndShutdown:
		code, refused.Refusal = ServerShuttingDown, Refusal{connUnavailable, ServerUnavailable}
	}
	return x.down.last(func(greeted bool) []byte {
		if x.web != nil {
			x.web.status, x.web.reason = closeStatus(e.Code), e.Reason
		}
		if !greeted {
			return refusalPacket(x.connect.level, refused)
		}
		return x.disconnect(code, e.Reason)
	})
}

// allowedSilence is one and a half times the keep alive, [MQTT-3.1.2-22].
func (x *session) allowedSilence(keepAlive time.Duration) time.Duration {
	if x.shim() && (keepAlive == 0 || keepAlive > x.srv.Limits.MaxKeepAlive) {
		keepAlive = x.srv.Limits.MaxKeepAlive
	}
	return keepAlive * 3 / 2
}

func (x *session) badTopic(t string) bool {
	return x.traits.BadTopic != nil && x.traits.BadTopic(t)
}

// judged counts an act that the permissions refused, and tells of it, once per
// deniedEvery. Of those that they allowed it tells each for the first time, up to
// maxTold in a session.
func (x *session) judged(action, topic string, allowed bool) {
	if allowed {
		if x.tells(action, topic) {
			x.srv.Gatekeeper.Judged(x.info, countersign.Act{Action: action, Topic: topic, Allowed: true})
		}
		return
	}
	x.srv.count.denied.Add(1)
	now := x.now()
	x.mu.Lock()
	tell := now.Sub(x.deniedAt) >= deniedEvery
	if tell {
		x.deniedAt = now
	} else {
		x.suppressed++
	}
	x.mu.Unlock()
	if tell {
		x.srv.Gatekeeper.Judged(x.info, countersign.Act{Action: action, Topic: topic})
	}
}

// tells reports whether an act is one to tell, and notes that it was.
func (x *session) tells(action, topic string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.told) == maxTold {
		return false
	}
	h := maphash.Comparable(x.srv.seed, [2]string{action, topic})
	if slices.Contains(x.told, h) {
		return false
	}
	x.told = append(x.told, h)
	return true
}
