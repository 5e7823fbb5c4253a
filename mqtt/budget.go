package mqtt

import (
	"errors"

	countersign "github.com/countersign-iot/countersign"
)

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
