package mqtt

import (
	"errors"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

const (
	// heldTold is how long a device must publish more than its budget to be told of: a
	// burst of what gathered while it was away is none of anybody's business.
	heldTold = 10 * time.Second
	// heldPause is how long a device must not be held back to begin anew.
	heldPause = time.Second
	// filterUnit is how many octets of a SUBSCRIBE or UNSUBSCRIBE count as one message:
	// for each filter the engine makes or removes a consumer.
	filterUnit = 16
)

// How a session ends that used more than its budget.
var (
	errUnread = errors.New("the device leaves its messages unread")
	errFlood  = errors.New("the device publishes more than its budget")
)

// exceeded counts and tells of what the device wanted beyond its budget.
func (x *session) exceeded(budget string, limit int64) {
	x.srv.count.overBudget.Add(1)
	x.srv.Gatekeeper.Exceeded(x.info, budget, limit)
}

// overBudget ends the session because of a budget.
func (x *session) overBudget(budget string, limit int64, code Reason) {
	reason := "more than the budget of " + budget
	x.end(ending(countersign.EndBudget, reason), x.disconnect(code, reason))
	if x.ending.Code == countersign.EndBudget {
		x.exceeded(budget, limit)
	}
}

// slowDown holds the device to its budget of messages by reading no faster: what its
// own TCP holds back costs us nothing. All sessions of the device share the budget.
func (x *session) slowDown(f frame) error {
	cost := 1
	switch f.kind() {
	case pktPublish:
		cost += len(f.raw) / publishUnit
	case pktSubscribe, pktUnsubscribe:
		cost += len(f.raw) / filterUnit
	case pktPuback, pktPubrec, pktPubrel, pktPubcomp, pktDisconnect:
		return nil // what it answers to was counted
	}
	now := x.now()
	l := x.account.limiter
	wait := l.ReserveN(now, min(cost, l.Burst())).DelayFrom(now)
	if wait <= 0 {
		return nil
	}
	x.srv.count.slowed.Add(1)
	if now.Sub(x.heldLast) > heldPause {
		x.heldSince = now
	}
	x.heldLast = now.Add(wait)
	switch held := now.Sub(x.heldSince); {
	case held >= x.srv.Limits.Flood:
		return errFlood
	case held >= heldTold:
		x.srv.Gatekeeper.Exceeded(x.info, countersign.BudgetPublishes, int64(x.budget.Publishes))
	}
	if err := x.flushBoth(&x.up, &x.down); err != nil {
		return err
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-x.live.Done():
		return errEnded
	}
}

// mayRetainMore counts a retained message in and reports whether the device may have
// it.
func (x *session) mayRetainMore(topic string, octets int) bool {
	if x.srv.stock.retain(x.info.Device, topic, octets) {
		return true
	}
	x.exceeded(countersign.BudgetRetained, int64(x.srv.Limits.RetainedOctets))
	return false
}

// full reports whether the device has as much unread as it may.
func (x *session) full() bool { return int64(x.down.held()) > x.budget.Unread/2 }

// unreadable reports whether a message to the device is dropped because the device has
// as much unread as it may. One of QoS 1 or 2 is not: the engine keeps the next ones
// while send waits. A device whose messages are dropped for the time of a stall is ended.
func (x *session) unreadable(p publish, size int) (drop bool, err error) {
	if p.qos > 0 || x.down.room(size) {
		if !x.unreadSince.IsZero() && !x.full() {
			x.unreadSince = time.Time{}
		}
		return false, nil
	}
	x.srv.count.unread.Add(1)
	now := x.now()
	if x.unreadSince.IsZero() {
		x.unreadSince = now
		x.srv.Gatekeeper.Exceeded(x.info, countersign.BudgetUnread, x.budget.Unread)
	}
	if now.Sub(x.unreadSince) >= x.srv.Limits.Stall {
		return true, errUnread
	}
	return true, nil
}

// downFailed ends the session after a write to the device failed: nobody waits for it.
func (x *session) downFailed(err error) {
	if errors.Is(err, errStalled) && x.full() {
		x.overBudget(countersign.BudgetUnread, x.budget.Unread, QuotaExceeded)
	} else if !errors.Is(err, errEnded) {
		x.endOn(err)
	}
	_ = x.conn.SetReadDeadline(x.now().Add(-time.Second))
}
