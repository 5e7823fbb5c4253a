package mqtt

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

// session is one device's connection. One goroutine reads the device, judges its frames
// and passes them to the back; what goes to the device is put into the outbox down, by
// any goroutine.
type session struct {
	srv  *Server
	conn *edge.Conn
	web  *webSocket // nil over TCP
	live *edge.Live
	now  func() time.Time

	connect   *connect
	software  string    // what the client claims about itself, so far
	assigned  string    // the client identifier, if the gateway chose it
	exchange  *exchange // an authentication of several steps; owned by the reader
	perms     countersign.Permissions
	budget    countersign.Budget
	account   *account // of its device
	info      countersign.Session
	stamp     []byte // names the sender in what it publishes
	ephemeral bool   // nothing is kept of the session

	in   frameReader // the device's frames; owned by the reader
	down outbox      // to the device
	back back

	done   atomic.Bool // set by end
	over   sync.Once
	ending countersign.Ending // set by over
	last   []byte             // DISCONNECT to send, set by over

	// Owned by the reader.
	keepAlive  time.Duration // how long the device may be silent; 0: for ever
	aliasMax   uint16        // highest alias the device may use
	cleanLeave bool          // the device sent DISCONNECT
	withWill   bool          // and asked for its will
	expiry     uint32        // Session Expiry Interval

	inFlight    atomic.Int32 // MQTT 5: messages of QoS 1 and 2 from the device without their last acknowledgment
	maxFlight   int32        // the Receive Maximum that was announced
	unreadSince atomic.Int64 // messages are dropped since then because the device does not read, Unix nanoseconds; 0: none

	acts reports
}

// reports bounds what a session reports of what its device does.
type reports struct {
	mu         sync.Mutex
	allowed    []uint64 // hashes of the acts that were reported as allowed
	deniedAt   time.Time
	suppressed int
}

// maxPending bounds each table of packet identifiers that wait for an answer. It is the
// Receive Maximum that the gateway announces, too.
const maxPending = 256

const (
	// maxAliases is the Topic Alias Maximum, each way, whatever the peer would take: a
	// device publishes to few topics, and each alias keeps one in memory.
	maxAliases = 16
	// maxAliasOctets bounds the topics of a device's aliases, to 1 KiB for each.
	maxAliasOctets = maxAliases << 10
)

func (x *session) ended() bool {
	if x.live == nil {
		return false
	}
	_, ended := x.live.Ended()
	return ended
}

// open gets the session onto its back and greets the device.
func (x *session) open(ctx context.Context) error {
	c := x.connect
	x.expiry = c.sessionExpiry
	x.stamp = stampOf(x.info.Device, x.info.Fleet)
	x.maxFlight = maxPending
	x.aliasMax = maxAliases
	c.aliasMax = min(c.aliasMax, maxAliases)
	x.keepAlive = time.Duration(c.keepAlive) * time.Second * 3 / 2 // [MQTT-3.1.2-22]
	if x.srv.Relay != nil {
		x.back = &remote{session: x}
	} else {
		x.back = newLocal(x)
	}
	answer, err := x.back.open(ctx)
	if err != nil {
		return err
	}
	if c.level == levelOld {
		answer.present = false // the bit is reserved
	}
	p := answer.encode(c.level)
	if x.tooLarge(len(p)) {
		return refuse(0, PacketTooLarge, fmt.Sprintf("a CONNACK of %d octets is over the client's Maximum Packet Size of %d", len(p), c.maxPacket))
	}
	// After the back has it, so that a cut which came meanwhile is seen: send looks.
	if err := x.down.send(p); err != nil {
		return err
	}
	return x.down.flush()
}

// tooLarge reports whether a packet of size octets is over the client's Maximum Packet
// Size, [MQTT-3.1.2-24].
func (x *session) tooLarge(size int) bool {
	return x.connect.maxPacket > 0 && size > int(x.connect.maxPacket)
}

// backFailed is the answer to a device whose session the back did not take.
func (x *session) backFailed(ctx context.Context, err error) error {
	if x.ended() {
		return errEnded
	}
	x.srv.count.engineFailed.Add(1)
	x.srv.Log.WarnContext(ctx, "the engine did not take a session", "device", x.info.Device, "error", err)
	if e, ok := errors.AsType[*countersign.Error](err); ok && e.Code == countersign.OverBudget {
		return refuseFor(e.Code, e.Message)
	}
	return refuse(connUnavailable, ServerUnavailable, "the message engine is not available")
}

// ownConnackProps adds what the gateway answers for, whatever the back.
func (x *session) ownConnackProps(b []byte) []byte {
	c := x.connect
	if x.assigned != "" {
		b = appendTextProp(b, propAssignedID, x.assigned)
	}
	if x.ephemeral {
		b = appendU32Prop(b, propSessionExpiry, 0)
	}
	if c.wantsInbox {
		b = appendTextProp(b, propResponseInfo, x.inbox())
	}
	if c.hasMethod {
		b = appendAuthProps(b, c.method, x.exchange.answer)
	}
	return b
}

// run serves the session until one side is gone, then closes both and reports it.
func (x *session) run(ctx context.Context) {
	s := x.srv
	// A will costs memory for the session's life, the back has it now.
	x.connect.will, x.connect.props, x.connect.data, x.exchange = nil, nil, nil, nil
	x.down.bound(int(min(x.budget.Unread, math.MaxInt32)), x.downFailed)
	s.count.opened.Add(1)
	s.Gatekeeper.Opened(x.info)
	x.back.start()
	x.finishUp((&reader{session: x}).runUp(ctx))

	x.sayGoodbye()
	x.back.close(ctx)
	if x.ended() { // who ended it has the last words, then closes the socket
		<-x.live.Done()
	}
	x.acts.mu.Lock()
	suppressed := x.acts.suppressed
	x.acts.mu.Unlock()
	if suppressed > 0 {
		s.Log.InfoContext(ctx, "denied acts not reported one by one", "device", x.info.Device, "session", x.info.ID, "count", suppressed)
	}
	s.accounts.leave(x.info.Device, x.account)
	s.count.closed.Add(1)
	s.Gatekeeper.Closed(x.info, x.ending)
}

// end records how the session ended; the first call counts. An ending by this side goes
// before whatever error it caused.
func (x *session) end(e countersign.Ending, last []byte) {
	x.over.Do(func() {
		if ours, ok := x.live.Ended(); ok {
			e, last = ours, nil
		}
		x.ending, x.last = e, last
	})
	x.done.Store(true)
}

func ending(code countersign.EndCode, reason string) countersign.Ending {
	return countersign.Ending{Code: code, Reason: reason}
}

// errEngine ends a session that its back does not serve any more.
var errEngine = errors.New("the message engine closed the session")

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

// endOn names the end that err is.
func (x *session) endOn(err error) {
	if p, ok := errors.AsType[*protocolError](err); ok {
		x.srv.count.malformed.Add(1)
		x.end(ending(countersign.EndProtocol, p.text), x.disconnect(p.code, p.text))
		return
	}
	switch {
	case errors.Is(err, errEngine):
		x.srv.count.engineFailed.Add(1)
		x.end(ending(countersign.EndEngine, "engine closed"), x.disconnect(ServerUnavailable, "the message engine closed the session"))
	case errors.Is(err, errStalled):
		x.end(ending(countersign.EndLost, "the client takes no data"), nil)
	default:
		x.end(ending(countersign.EndLost, "network error"), nil)
	}
}

// stop has the reader come to its end, after end has named it.
func (x *session) stop() { _ = x.conn.SetReadDeadline(x.now().Add(-time.Second)) }

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
	case countersign.EndEngine:
		code, refused.Refusal = ServerUnavailable, Refusal{connUnavailable, ServerUnavailable}
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

// judged counts an act that the permissions refused, and reports it, once per
// deniedEvery. Of those that they allowed it reports each for the first time, up to
// maxTold in a session.
func (x *session) judged(action, topic string, allowed bool) {
	if allowed {
		if x.acts.firstTime(maphash.Comparable(x.srv.seed, [2]string{action, topic})) {
			x.srv.Gatekeeper.Judged(x.info, countersign.Act{Action: action, Topic: topic, Allowed: true})
		}
		return
	}
	x.srv.count.denied.Add(1)
	if x.acts.denied(x.now()) {
		x.srv.Gatekeeper.Judged(x.info, countersign.Act{Action: action, Topic: topic})
	}
}

// denied reports whether a refused act is one to report, and notes that it was.
func (r *reports) denied(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.deniedAt) < deniedEvery {
		r.suppressed++
		return false
	}
	r.deniedAt = now
	return true
}

// firstTime reports whether an allowed act is one to report, and notes that it was.
func (r *reports) firstTime(act uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.allowed) == maxTold || slices.Contains(r.allowed, act) {
		return false
	}
	r.allowed = append(r.allowed, act)
	return true
}
