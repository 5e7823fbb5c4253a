package mqtt

import (
	"context"
	"errors"
	"hash/maphash"
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
// It has more fields than other types because it is what CONNECT, the Gatekeeper, the back
// and the device's own packets each leave for the others.
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

// flush passes on what was gathered, to both sides.
func (x *session) flush() error {
	if err := x.back.flush(); err != nil {
		return err
	}
	return x.down.flush()
}

// land counts the last acknowledgment of a message of the device. An acknowledgment
// sent again raises the quota over its start no more than MQTT 5, 4.9 allows.
func (x *session) land(kind byte, code Reason) {
	if x.connect.level < 5 || kind != pktPuback && kind != pktPubcomp && (kind != pktPubrec || code < UnspecifiedError) {
		return
	}
	for {
		n := x.inFlight.Load()
		if n == 0 || x.inFlight.CompareAndSwap(n, n-1) {
			return
		}
	}
}

// answerSubscribe sends the SUBACK or UNSUBACK for a packet of type kind.
func (x *session) answerSubscribe(kind byte, id uint16, codes []byte) error {
	if x.connect.level < 5 {
		for i, code := range codes {
			if code > 2 {
				codes[i] = subFailure
			}
		}
	}
	return x.down.send((&suback{id: id, codes: codes}).encode(kind+1, x.connect.level))
}
