package mqtt

import (
	"io"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

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

// awaitEnd waits a moment until a client that left has closed its side. A socket that is
// closed with octets unread, such as the client's close_notify, is reset, and some
// clients report that as a failure.
func (x *session) awaitEnd() {
	_ = x.conn.SetReadDeadline(x.now().Add(leaveTimeout))
	_, _ = io.CopyN(io.Discard, x.conn, lingerBytes)
}

// linger ends our side, with a last packet if there is one, and waits until the peer
// has ended its own, so that the last answer is not lost to a reset.
func (x *session) linger(last []byte) {
	if x.down.broken() { // TLS would wait five seconds for room for its close_notify
		x.conn.Abort()
		return
	}
	limit := x.now().Add(lingerTimeout)
	_ = x.conn.SetDeadline(limit)
	x.down.until(limit)
	whole := false
	said := x.down.last(func(bool) []byte { whole = true; return last })
	if !whole || len(last) > 0 && !said { // a write failed meanwhile, or this one did
		x.conn.Abort()
		return
	}
	drain(x.conn)
}

// drain ends our side and waits for the peer's end, within the deadline that is set.
func drain(c *edge.Conn) {
	if c.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c, lingerBytes)
	}
}
