package broker

import (
	"slices"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// impossible reports that the database cannot make a change, rather than not now.
func impossible(err error) bool {
	return err != nil && countersign.CodeOf(err) != countersign.Unavailable
}

// again reports that the change must not be lost although a client may wait for it: what it
// ends has ended in memory.
func (o *op) again() bool {
	return o.kind.lazy() || o.kind == opRelease || o.kind == opComplete || o.kind == opDrain || o.kind == opUnsubscribe && o.old
}

// will reports that the change is of a will: no publisher sends it again.
func (o *op) will() bool {
	return o.p != nil && o.p.will != nil && (o.kind == opInsert || o.kind == opRetain)
}

// moot reports that a will which was not on record at once is not to be published any more:
// its client has come back, or its topic has a newer retained message.
func (b *Broker) moot(o *op) bool {
	s := o.p.will
	b.mu.Lock()
	now := b.sessions[s.client]
	b.mu.Unlock()
	if now != nil && (now != s || now.live.Load() || now.left.Load() != o.p.leftAt) {
		return true
	}
	return o.kind == opRetain && !b.retained.awaits(o.m)
}

// later has the changes written again that must not be lost.
func (j *journal) later(ops []op, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range ops {
		o := ops[i]
		if o.p != nil && o.p.answer != nil {
			o.p.c.refused = o.p.c.resends
		}
		switch {
		case o.kind == opPurge:
			j.ordered = true // or it ends what the device's next life has recorded
		case o.kind == opChange:
			o.row = nil // what is so then: a newer row may be on record before
		case o.will() && !store.Full(err):
			ops[i].waits, o.p.late = true, true
			if o.e != nil {
				o.e.seq = 0 // others may be on record before
			}
			j.retry = append(j.retry, o)
			continue
		case !o.again():
			continue
		}
		o.done, o.p = nil, nil // they have their answer
		j.retry = append(j.retry, o)
	}
	if j.closed {
		j.lost, j.retry, j.ordered = j.lost+len(j.retry), nil, false
		return
	}
	time.AfterFunc(retryAfter, func() {
		j.mu.Lock()
		j.again = true
		j.mu.Unlock()
		j.wakeUp()
	})
}

// keepOrder puts groups back if nothing may be written before what failed.
func (j *journal) keepOrder(groups [][]op) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ordered {
		j.pending = append(slices.Clone(groups), j.pending...)
		j.urgent = true
	}
	return j.ordered
}

// refuse has those groups fail of which the publisher sends all again, since one before them
// has failed: it would come behind them; and late wills that are moot. It returns the others.
func (j *journal) refuse(groups [][]op) [][]op {
	var ops []op
	groups = slices.DeleteFunc(groups, func(g []op) bool {
		o := &g[len(g)-1]
		again := o.p != nil && (o.p.c != nil && o.p.c.refused || o.p.late && j.b.moot(o))
		if again {
			ops = append(ops, g...)
		}
		return again
	})
	if len(ops) > 0 {
		j.committed <- batch{ops, errNotStored}
	}
	return groups
}
