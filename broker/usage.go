package broker

import (
	"context"
	"slices"

	countersign "github.com/countersign-iot/countersign"
)

// Stats counts.
func (b *Broker) Stats() Stats {
	return Stats{
		Dropped: b.dropped.Load(), Expired: b.expired.Load(),
		SessionsDropped: b.sessionsDropped.Load(), CommitFailed: b.commitFailed.Load(),
	}
}

// Usage implements [countersign.MessageStore] for this node.
func (b *Broker) Usage(_ context.Context, f countersign.UsageFilter) ([]countersign.Usage, error) {
	after := countersign.Usage{Device: f.After.Device, RetainedOctets: f.After.Octets}
	var list []countersign.Usage
	b.mu.Lock()
	for _, a := range b.accounts {
		if isNode(a.device) || f.Device != "" && f.Device != a.device {
			continue
		}
		if u := a.usage(); f.After.Device == "" || countersign.CompareUsage(after, u) < 0 {
			list = append(list, u)
		}
	}
	b.mu.Unlock()
	slices.SortFunc(list, countersign.CompareUsage)
	return list[:min(len(list), f.Limit)], nil
}

// TotalUsage implements [countersign.MessageStore].
func (b *Broker) TotalUsage(context.Context) (sum countersign.Usage, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.accounts {
		u := a.usage()
		sum.Sessions += u.Sessions
		sum.Kept += u.Kept
		sum.Subscriptions += u.Subscriptions
		sum.Retained += u.Retained
		sum.RetainedOctets += u.RetainedOctets
		sum.Queued += u.Queued
		sum.QueuedOctets += u.QueuedOctets
	}
	return sum, nil
}

func (a *account) usage() countersign.Usage {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := countersign.Usage{
		Device: a.device, Subscriptions: a.subs, Retained: len(a.retained), RetainedOctets: int64(a.octets),
		Queued: a.queued, QueuedOctets: int64(a.waiting),
	}
	for s := range a.sessions {
		if s.live.Load() {
			u.Sessions++
		} else {
			u.Kept++
		}
	}
	return u
}

// Purge implements [countersign.MessageStore]. Messages in flight are delivered all the
// same. It returns once what it dropped is off the record.
func (b *Broker) Purge(ctx context.Context, device string, what countersign.Stored) (done countersign.Purged, err error) {
	b.mu.Lock()
	a := b.accounts[device]
	b.mu.Unlock()
	if a == nil {
		return done, nil
	}
	sessions, messages := a.stored()
	var ops []op
	if what.Retained || what.All {
		for _, m := range messages {
			end := &Message{Topic: m.Topic, Retain: true, Device: device}
			if b.retained.get(m.Topic) != m || !b.retained.announce(end) {
				continue
			}
			done.Retained++
			done.RetainedOctets += int64(m.cost())
			ops = append(ops, op{kind: opRetain, m: end, a: a})
		}
	}
	for _, s := range sessions {
		if (what.Sessions || what.All) && !s.live.Load() {
			s.mu.Lock()
			done.Queued += s.total
			done.QueuedOctets += int64(s.octets)
			s.mu.Unlock()
			w, wipe := b.end(s)
			if done.Sessions++; wipe {
				ops = append(ops, op{kind: opWipe, s: s})
			}
			if w != nil {
				b.publishWill(s, w)
			}
		} else if what.Queued || what.All {
			ops = append(ops, s.drain(&done)...)
		}
	}
	if len(ops) == 0 {
		return done, nil
	}
	return done, b.journal.wait(ctx, ops)
}

// stored returns what a device has.
func (a *account) stored() (sessions []*session, messages []*Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := range a.sessions {
		sessions = append(sessions, s)
	}
	for m := range a.retained {
		messages = append(messages, m)
	}
	return sessions, messages
}

// drain drops the messages that wait and are not in flight.
func (s *session) drain(done *countersign.Purged) []op {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ask = nil
	n, octets, from := s.total, s.octets, uint64(0)
	flying := s.flying()
	for _, e := range s.queue[:flying] {
		n, octets, from = n-1, octets-e.m.cost(), e.seq
	}
	if n == 0 || s.dead {
		return nil
	}
	s.drains++ // what is on its way to the record is dropped there
	s.dropBehind(flying)
	s.count(-n, -octets)
	s.a.unqueue(n, octets)
	done.Queued += n
	done.QueuedOctets += int64(octets)
	if !s.kept {
		return nil
	}
	s.loaded, s.more = max(s.loaded, s.stored), false
	o := op{kind: opDrain, s: s, from: from, to: max(s.stored, s.loaded)}
	if flying > 0 {
		o.e = s.queue[flying-1] // its page stays
	}
	return []op{o}
}
