package mqtt

import (
	"errors"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

const (
	// heldTold is how long a device must publish more than its budget until an event reports it: a
	// burst of what gathered while it was away is no abuse.
	heldTold = 10 * time.Second
	// heldPause is how long a device must not be held back to begin anew.
	heldPause = time.Second
	// filterUnit is how many octets of a SUBSCRIBE or UNSUBSCRIBE count as one message:
	// each filter is put on record, or taken from it.
	filterUnit = 16
)

// errFlood ends a session that used more than its budget of publishes.
var errFlood = errors.New("the device publishes more than its budget")

// exceeded counts and reports what the device wanted beyond its budget.
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
func (x *reader) slowDown(f frame) error {
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
	if cost = min(cost, l.Burst()); l.AllowN(now, cost) {
		return nil
	}
	wait := l.ReserveN(now, cost).DelayFrom(now)
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
	if err := x.flush(); err != nil {
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

// full reports whether the device has as much unread as it may.
func (x *session) full() bool { return int64(x.down.held()) > x.budget.Unread/2 }

// sent notes that a message of QoS 0 found room.
func (x *session) sent() {
	x.srv.count.delivered.Add(1)
	if x.unreadSince.Load() != 0 && !x.full() {
		x.unreadSince.Store(0)
	}
}

// unread notes that a message of QoS 0 to the device was dropped because the device has
// as much unread as it may. It reports whether that has gone on for the time of a stall:
// such a device is ended.
func (x *session) unread() (enough bool) {
	x.srv.count.unread.Add(1)
	now := x.now()
	if x.unreadSince.CompareAndSwap(0, now.UnixNano()) {
		x.srv.Gatekeeper.Exceeded(x.info, countersign.BudgetUnread, x.budget.Unread)
	}
	since := x.unreadSince.Load()
	return since != 0 && now.UnixNano()-since >= int64(x.srv.Limits.Stall)
}

// downFailed ends the session after a write to the device failed. No caller waits for it.
func (x *session) downFailed(err error) {
	if errors.Is(err, errStalled) && x.full() {
		x.overBudget(countersign.BudgetUnread, x.budget.Unread, QuotaExceeded)
	} else if !errors.Is(err, errEnded) {
		x.endOn(err)
	}
	x.stop()
}
