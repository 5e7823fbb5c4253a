package mqtt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	countersign "github.com/countersign-iot/countersign"
)

// Usage implements [countersign.MessageStore] for this node. What the engine has queued
// is not counted, nor are sessions that an earlier process kept, until their device
// comes or is asked for.
func (s *Server) Usage(_ context.Context, f countersign.UsageFilter) ([]countersign.Usage, error) {
	s.init()
	k := &s.stock
	k.mu.Lock()
	if f.Device != "" {
		k.tidy(k.accountLocked(f.Device)) // which reads what an earlier process kept
	}
	var list []countersign.Usage
	for _, a := range k.by {
		if u := a.usage(); named(f, u) {
			list = append(list, u)
		}
	}
	k.mu.Unlock()
	slices.SortFunc(list, countersign.CompareUsage)
	return list[:min(len(list), f.Limit)], nil
}

// named reports whether u is among what f names.
func named(f countersign.UsageFilter, u countersign.Usage) bool {
	after := countersign.Usage{Device: f.After.Device, RetainedOctets: f.After.Octets}
	return (f.Device == "" || u.Device == f.Device) && (f.After.Device == "" || countersign.CompareUsage(after, u) < 0)
}

// TotalUsage implements [countersign.MessageStore].
func (s *Server) TotalUsage(context.Context) (sum countersign.Usage, err error) {
	s.init()
	s.stock.mu.Lock()
	defer s.stock.mu.Unlock()
	for _, a := range s.stock.by {
		u := a.usage()
		sum.Sessions += u.Sessions
		sum.Kept += u.Kept
		sum.Subscriptions += u.Subscriptions
		sum.Retained += u.Retained
		sum.RetainedOctets += u.RetainedOctets
	}
	return sum, nil
}

// usage is read under the stock's lock.
func (a *account) usage() countersign.Usage {
	u := countersign.Usage{
		Device: a.device, Sessions: a.live, Subscriptions: a.filters(), Retained: len(a.retained), RetainedOctets: int64(a.octets),
	}
	for _, one := range a.sessions {
		if one.live == 0 {
			u.Kept++
		}
	}
	return u
}

// Purge implements [countersign.MessageStore]. The engine keeps a queue together with
// its session, so queued messages cannot be dropped alone.
func (s *Server) Purge(ctx context.Context, device string, what countersign.Stored) (done countersign.Purged, err error) {
	s.init()
	var errs []error
	if what.Retained || what.All {
		done.Retained, done.RetainedOctets, err = s.unretain(ctx, device)
		errs = append(errs, err)
	}
	switch {
	case what.All:
		s.stock.idle(device)
		errs = append(errs, s.Engine.Purge(ctx, device))
	case what.Sessions:
		done.Sessions, err = s.dropIdle(ctx, device)
		errs = append(errs, err)
	case what.Queued:
		errs = append(errs, countersign.Errorf(countersign.Conflict, "the engine keeps queued messages with their session").
			WithNext("purge the sessions: their queues go with them"))
	}
	return done, errors.Join(errs...)
}

// unretain drops the retained messages of a device, as far as they are known.
func (s *Server) unretain(ctx context.Context, device string) (n int, octets int64, err error) {
	p, ok := s.Engine.(Platform)
	if !ok {
		return 0, 0, countersign.Errorf(countersign.Conflict, "the engine's retained messages cannot be dropped from here").
			WithNext("drop them with the broker's own tools")
	}
	for topic, size := range s.stock.retainedOf(device) {
		if err := p.Unretain(ctx, topic); err != nil { // the engine is away; the others would fail as well
			return n, octets, fmt.Errorf("couldn't drop the retained message of %s on %.80q: %w", device, topic, err)
		}
		if s.stock.release(device, topic) {
			n, octets = n+1, octets+int64(size)
		}
	}
	return n, octets, nil
}

// dropIdle drops the stored sessions of a device that no client uses now.
func (s *Server) dropIdle(ctx context.Context, device string) (n int, err error) {
	if s.stock.keeper == nil {
		return 0, s.Engine.Purge(ctx, device) // which says why it cannot
	}
	for _, one := range s.stock.idle(device) {
		if err := s.dropStored(ctx, one); err != nil {
			return n, fmt.Errorf("couldn't drop a stored session of %s: %w", device, err)
		}
		n++
	}
	return n, nil
}

// retainedOf returns the topics of a device's retained messages and their octets.
func (k *stock) retainedOf(device string) map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a := k.by[device]; a != nil {
		return maps.Clone(a.retained)
	}
	return nil
}

// release counts a retained message out, unless it is another device's by now.
func (k *stock) release(device, topic string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	owner := k.owner[topic]
	if owner == nil || owner.device != device {
		return false
	}
	k.releaseLocked(owner, topic)
	return true
}

// idle takes all stored sessions of a device out that no client uses now.
func (k *stock) idle(device string) []*stored {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.accountLocked(device)
	defer k.tidy(a)
	return a.excess(0)
}

// dropStored has the engine end a stored session.
func (s *Server) dropStored(ctx context.Context, one *stored) error {
	if one.info.ID != "" {
		w := session{srv: s, info: one.info, now: s.Now, level: 4}
		return w.wipe(ctx)
	}
	if s.stock.keeper != nil {
		return s.stock.keeper.Drop(ctx, one.id)
	}
	return nil
}

// drop has the engine end sessions that a device has stored beyond its share.
func (x *session) drop(ctx context.Context, all []*stored) {
	for _, one := range all {
		if err := x.srv.dropStored(ctx, one); err != nil {
			x.srv.Log.WarnContext(ctx, "stored session not dropped", "device", x.info.Device, "error", err)
		}
	}
	if len(all) > 0 {
		x.srv.count.dropped.Add(uint64(len(all)))
	}
}
