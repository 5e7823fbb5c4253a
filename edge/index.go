package edge

import (
	"slices"
	"sync"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// maxRecentCuts bounds the cuts kept for undecided connections; a decision takes
// milliseconds. If there are more during one decision, its connection is refused,
// because it may have been among those cut.
const maxRecentCuts = 16_384

// cutWorkers bounds the goroutines of one cut. A stalled peer holds one for
// farewellBound, so 10,000 of them take 50 ms.
const cutWorkers = 1024

// Register puts a connection in the index before its admission is decided.
// The owner calls Remove when the connection is over.
func (x *Index) Register(c *Conn, farewell Farewell) *Live {
	l := &Live{index: x, conn: c, farewell: farewell, closed: make(chan struct{})}
	x.mu.Lock()
	defer x.mu.Unlock()
	l.since, l.known = x.forgotten+uint64(len(x.cuts)), x.changes
	if l.prev = x.last; l.prev != nil {
		l.prev.next = l
	} else {
		x.first = l
	}
	x.last = l
	return l
}

// Admit puts the connection under its device and certificate, unless a cut of
// either was made since it was registered, or its device has max sessions already:
// then it returns an error with the code NotAllowed or OverBudget, and the connection
// must be refused. A session with the client identifier of another one of the device
// will replace that one, and is not counted. From now on the connection ends at
// s.NotAfter, unless that is zero.
func (l *Live) Admit(s countersign.Session, max int) *countersign.Error {
	stale, err := l.admit(s, max)
	if stale && l.index.Stale != nil {
		l.index.Stale(s)
	}
	return err
}

func (l *Live) admit(s countersign.Session, most int) (stale bool, err *countersign.Error) {
	x := l.index
	x.mu.Lock()
	defer x.mu.Unlock()
	if l.since < x.forgotten {
		return false, countersign.Errorf(countersign.NotAllowed, "the gateway is too busy with revocations")
	}
	for _, c := range x.cuts[l.since-x.forgotten:] {
		if matches(c, s) {
			return false, &countersign.Error{Code: countersign.NotAllowed, Message: c.Reason}
		}
	}
	if n := x.others(s); n >= most {
		return false, countersign.Errorf(countersign.OverBudget, "the device has %d sessions on this node already, the most that it may have", n)
	}
	x.unlink(l)
	l.session, l.admitted = s, true
	x.admitted[l] = struct{}{}
	add(x.byDevice, s.Device, l)
	for _, device := range s.Scope {
		add(x.byDevice, device, l)
	}
	if !s.Cert.IsZero() {
		add(x.byCert, s.Cert, l)
	}
	if s.Credential != "" {
		add(x.byCred, s.Credential, l)
	}
	if !s.NotAfter.IsZero() {
		l.expiry = time.AfterFunc(s.NotAfter.Sub(x.Now()), func() {
			l.End(countersign.Ending{Code: countersign.EndExpired, Reason: "the certificate expired"})
		})
	}
	l.conn.Admitted()
	return max(x.allChanged, x.changed[s.Fleet]) > l.known, nil
}

// others returns the number of sessions of a device that s would not replace.
func (x *Index) others(s countersign.Session) int {
	n := 0
	for _, l := range x.byDevice[s.Device] {
		same := l.session.Gateway == s.Gateway && l.session.ClientID == s.ClientID && s.ClientID != ""
		if _, ended := l.Ended(); l.session.Device == s.Device && !same && !ended {
			n++
		}
	}
	return n
}

// Changed records that the basis of decisions has changed, for fleets or, without
// any, for all. The caller compares the live sessions with the record; those that are
// being decided are passed to Stale once they are admitted.
func (x *Index) Changed(fleets ...string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.changes++
	if len(fleets) == 0 {
		x.allChanged = x.changes
	}
	for _, fleet := range fleets { // as many as there are fleets
		x.changed[fleet] = x.changes
	}
}

// EndEach ends the sessions with these ids, each for its reason, and returns how many
// they were.
func (x *Index) EndEach(reasons map[string]string) int {
	by := map[string][]*Live{}
	for _, l := range x.find(func(s countersign.Session) bool { _, ok := reasons[s.ID]; return ok }) {
		reason := reasons[l.session.ID]
		by[reason] = append(by[reason], l)
	}
	n := 0
	for reason, all := range by {
		n += x.end(all, countersign.Ending{Code: countersign.EndCut, Reason: reason})
	}
	return n
}

// Remove removes the connection from the index. It may be called more than once.
func (l *Live) Remove() {
	x := l.index
	x.mu.Lock()
	defer x.mu.Unlock()
	if !l.admitted {
		x.unlink(l)
		return
	}
	if l.expiry != nil {
		l.expiry.Stop()
	}
	delete(x.admitted, l)
	drop(x.byDevice, l.session.Device, l)
	for _, device := range l.session.Scope {
		drop(x.byDevice, device, l)
	}
	drop(x.byCert, l.session.Cert, l)
	drop(x.byCred, l.session.Credential, l)
}

// Cut ends all sessions that c names and returns how many they were. First all
// are marked, so that no further frame of theirs passes, then they are closed in
// parallel. No peer can delay it by more than a few milliseconds. An undecided
// connection that c names will be refused.
func (x *Index) Cut(c countersign.Cut) int {
	return x.end(x.remember(c), countersign.Ending{Code: countersign.EndCut, Reason: c.Reason})
}

// EndAll ends all sessions of this node.
func (x *Index) EndAll(e countersign.Ending) int {
	return x.end(x.find(func(countersign.Session) bool { return true }), e)
}

// find returns the admitted sessions for which want reports true.
func (x *Index) find(want func(countersign.Session) bool) (all []*Live) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for l := range x.admitted {
		if want(l.session) {
			all = append(all, l)
		}
	}
	return all
}

// Reschedule makes each session end at its NotAfter by the clock as it is now. The clock
// may have been set since the session was admitted.
func (x *Index) Reschedule() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for l := range x.admitted {
		if l.expiry != nil {
			l.expiry.Reset(l.session.NotAfter.Sub(x.Now()))
		}
	}
}

// CloseGateway ends all sessions of one gateway because it stops.
func (x *Index) CloseGateway(gateway string) int {
	all := x.find(func(s countersign.Session) bool { return s.Gateway == gateway })
	return x.end(all, countersign.Ending{Code: countersign.EndShutdown, Reason: "the gateway is stopping"})
}

// remember keeps the cut for undecided connections and returns the decided ones.
func (x *Index) remember(c countersign.Cut) []*Live {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.first != nil {
		if len(x.cuts) == maxRecentCuts {
			x.forget(maxRecentCuts / 2)
		}
		x.cuts = append(x.cuts, c)
	}
	var found []*Live
	if c.Device != "" {
		found = append(found, x.byDevice[c.Device]...)
	}
	if !c.Cert.IsZero() {
		found = append(found, x.byCert[c.Cert]...)
	}
	if c.Credential != "" {
		found = append(found, x.byCred[c.Credential]...)
	}
	if c.Session != "" { // an operator's command: rare, so a search is acceptable
		for l := range x.admitted {
			if l.session.ID == c.Session {
				found = append(found, l)
			}
		}
	}
	return found // one that is found twice is ended once
}

func (x *Index) end(all []*Live, e countersign.Ending) int {
	mine := all[:0]
	for _, l := range all {
		if l.mark(e) {
			mine = append(mine, l)
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, cutWorkers)
	for _, l := range mine {
		slots <- struct{}{}
		wg.Go(func() {
			l.close(e)
			<-slots
		})
	}
	wg.Wait()
	return len(mine)
}

// Sessions lists the admitted sessions, in no order.
func (x *Index) Sessions() []countersign.Session {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := make([]countersign.Session, 0, len(x.admitted))
	for l := range x.admitted {
		list = append(list, l.session)
	}
	return list
}

// Len returns the number of admitted sessions.
func (x *Index) Len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.admitted)
}

// unlink removes l from the list of the undecided and drops the cuts that no
// connection in it needs any more.
func (x *Index) unlink(l *Live) {
	if l.prev == nil && l.next == nil && x.first != l {
		return
	}
	if l.prev != nil {
		l.prev.next = l.next
	} else {
		x.first = l.next
	}
	if l.next != nil {
		l.next.prev = l.prev
	} else {
		x.last = l.prev
	}
	l.prev, l.next = nil, nil
	if x.first == nil {
		x.forget(len(x.cuts))
	} else if x.first.since > x.forgotten {
		x.forget(int(x.first.since - x.forgotten)) //nolint:gosec // at most len(cuts)
	}
}

func (x *Index) forget(n int) {
	x.cuts = append(x.cuts[:0:0], x.cuts[n:]...)
	x.forgotten += uint64(n) //nolint:gosec // never negative
}

func matches(c countersign.Cut, s countersign.Session) bool {
	return c.Device != "" && (c.Device == s.Device || slices.Contains(s.Scope, c.Device)) ||
		!c.Cert.IsZero() && c.Cert == s.Cert || c.Credential != "" && c.Credential == s.Credential ||
		c.Session != "" && c.Session == s.ID
}

func add[K comparable](m map[K][]*Live, k K, l *Live) { m[k] = append(m[k], l) }

func drop[K comparable](m map[K][]*Live, k K, l *Live) {
	i := slices.Index(m[k], l)
	if i < 0 {
		return
	}
	if m[k] = slices.Delete(m[k], i, i+1); len(m[k]) == 0 {
		delete(m, k)
	}
}
