package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// sessionWindow is how far back sessions are looked at, as at AWS.
	sessionWindow = 31 * 24 * time.Hour
	// idsAtOnce is how many lines of the log are looked through by one query.
	idsAtOnce = 5000
	// maxTracked bounds the sessions, and the clients, that are followed at once:
	// some 50 MB. The one that began first makes room.
	maxTracked = 200_000
	// minOverlap is how long two sessions stand side by side before that is sharing: a
	// device that moved to another network leaves a dead session behind for a while,
	// until its keep-alive runs out, but under the same client id.
	minOverlap = time.Minute
	// fightWindow, returns and kicks: a client that comes back three times within an
	// hour to where it was pushed out from fights another one; so does one that is
	// pushed out once a minute, from wherever.
	fightWindow = time.Hour
	minReturns  = 3
	minKicks    = 60
	// takenOver begins the reason of a session that another with its client id ended.
	takenOver = "taken over"
)

// firstEvent gives the id of the first line of the log from that time on. Lines are
// written in the order of time, give or take a second, so it is found by halving.
func (w *work) firstEvent(ctx context.Context, since time.Time) (int64, error) {
	var low, high sql.NullInt64
	if err := w.DB.QueryRow(ctx, `SELECT min(id), max(id) FROM event`).Scan(&low, &high); err != nil {
		return 0, fmt.Errorf("read the extent of the log: %w", err)
	}
	from, to := low.Int64, high.Int64+1
	for from < to {
		mid := from + (to-from)/2
		var id, at int64
		err := w.DB.QueryRow(ctx, `SELECT id, at FROM event WHERE id >= $1 ORDER BY id LIMIT 1`, mid).Scan(&id, &at)
		switch {
		case errors.Is(err, sql.ErrNoRows), err == nil && at >= store.Micros(since):
			to = mid
		case err != nil:
			return 0, fmt.Errorf("look for a time in the log: %w", err)
		default:
			from = id + 1
		}
	}
	return from, nil
}

// lookAtSessions follows the sessions of the last month through the log.
func lookAtSessions(ctx context.Context, w *work) error {
	first, err := w.firstEvent(ctx, w.now.Add(-sessionWindow))
	if err != nil {
		return err
	}
	var last sql.NullInt64
	if err := w.DB.QueryRow(ctx, `SELECT max(id) FROM event`).Scan(&last); err != nil {
		return fmt.Errorf("read the extent of the log: %w", err)
	}
	f := newFollower()
	t := table[sessionEvent]{scan: scanSessionEvent}
	for from := first; from <= last.Int64; from += idsAtOnce {
		page, err := t.page(ctx, w.DB, `SELECT at, type, device, fleet, issuer, serial, remote, reason, data FROM event
			WHERE id >= $1 AND id < $2 AND type IN ('session.opened', 'session.closed', 'server.started') ORDER BY id`, []any{from, from + idsAtOnce})
		if err != nil {
			return fmt.Errorf("read sessions: %w", err)
		}
		for i := range page {
			f.event(&page[i])
		}
		w.looked(int64(len(page)), CertificateShared, SecretShared, ConflictingClients)
	}
	f.end(w.now)
	for _, found := range f.found {
		w.report(found.Check, found)
	}
	return nil
}

// sessionEvent is the opening or the end of a session, or the start of a server.
type sessionEvent struct {
	at             time.Time
	kind           countersign.EventType
	device, fleet  string
	cert           countersign.CertRef
	remote, reason string
	data           map[string]string
}

func scanSessionEvent(rows *sql.Rows, e *sessionEvent) error {
	var at int64
	var data string
	if err := rows.Scan(&at, &e.kind, &e.device, &e.fleet, &e.cert.Issuer, &e.cert.Serial, &e.remote, &e.reason, &data); err != nil {
		return err
	}
	e.at = store.Time(at)
	if data != "" {
		_ = json.Unmarshal([]byte(data), &e.data) // a line that somebody changed is the log's own check's matter
	}
	return nil
}

// session is one that is open at the time that is being looked at.
type session struct {
	id, client, host, identity string
	device, fleet              string
	cert                       countersign.CertRef
	at                         time.Time
}

// fight is what is known of a client id that was taken over.
type fight struct {
	pushed, before string // hosts that were pushed out, last and last but one
	since          time.Time
	returns, kicks int
	told           bool
}

// follower follows sessions through the log.
type follower struct {
	open   map[string]*session            // by id
	by     map[string]map[string]struct{} // ids by what they rest on
	order  []string                       // ids in the order of their beginning, some of them ended
	fights map[string]*fight              // by client id
	shared map[string]bool                // what was told of already
	found  []Finding
}

func newFollower() *follower {
	return &follower{open: map[string]*session{}, by: map[string]map[string]struct{}{}, fights: map[string]*fight{}, shared: map[string]bool{}}
}

func (f *follower) event(e *sessionEvent) {
	switch e.kind {
	case countersign.SessionOpened:
		f.opened(e)
	case countersign.SessionClosed:
		f.closed(e)
	case countersign.ServerStarted: // whatever was open on it ended untold
		f.open, f.by, f.order = map[string]*session{}, map[string]map[string]struct{}{}, nil
	}
}

func (f *follower) opened(e *sessionEvent) {
	s := &session{
		id: e.data["session"], client: e.data["client_id"], host: hostOf(e.remote), device: e.device, fleet: e.fleet, cert: e.cert, at: e.at,
	}
	s.identity = e.data["credential"]
	if !e.cert.IsZero() {
		s.identity = e.cert.String()
	}
	f.returned(s)
	if s.id == "" || s.identity == "" || strings.Contains(s.device, "/") { // guests and operators share nothing
		return
	}
	for len(f.open) >= maxTracked && len(f.order) > 0 {
		f.forget(f.order[0])
		f.order = f.order[1:]
	}
	if len(f.order) > 2*maxTracked {
		f.order = slices.DeleteFunc(f.order, func(id string) bool { return f.open[id] == nil })
	}
	f.open[s.id] = s
	if f.by[s.identity] == nil {
		f.by[s.identity] = map[string]struct{}{}
	}
	f.by[s.identity][s.id] = struct{}{}
	f.order = append(f.order, s.id)
}

func (f *follower) forget(id string) {
	s := f.open[id]
	if s == nil {
		return
	}
	delete(f.open, id)
	delete(f.by[s.identity], id)
	if len(f.by[s.identity]) == 0 {
		delete(f.by, s.identity)
	}
}

func (f *follower) closed(e *sessionEvent) {
	if s := f.open[e.data["session"]]; s != nil {
		f.compare(s, e.at)
		f.forget(s.id)
	}
	if strings.HasPrefix(e.reason, takenOver) && len(f.fights) < maxTracked {
		c := e.data["client_id"]
		g := f.fights[c]
		if g == nil || e.at.Sub(g.since) > fightWindow {
			g = &fight{since: e.at, told: g != nil && g.told}
			f.fights[c] = g
		}
		g.before, g.pushed = g.pushed, hostOf(e.remote)
		g.kicks++
	}
}

// returned looks whether a client comes back to push out who pushed it out.
func (f *follower) returned(s *session) {
	g := f.fights[s.client]
	if g == nil || g.told {
		return
	}
	if s.host != g.pushed && s.host == g.before {
		g.returns++
		g.before = "" // counted
	}
	if g.returns < minReturns && g.kicks < minKicks {
		return
	}
	g.told = true
	f.tell(Finding{
		Check: ConflictingClients, Reason: "DUPLICATE_CLIENT_ID_ACROSS_CONNECTIONS", Subject: "device:" + s.device, Device: s.device, Fleet: s.fleet, Cert: s.cert,
		Summary: fmt.Sprintf("two clients of %s push each other out as %s", s.device, s.client),
		Evidence: map[string]string{
			"client_id": s.client, "addresses": s.host + ", " + g.pushed, "taken_over": fmt.Sprint(g.kicks), "within": fightWindow.String(), "last_at": stamp(s.at),
		},
	})
}

// compare looks which other sessions stood beside s until the time to.
func (f *follower) compare(s *session, to time.Time) {
	if f.shared[s.identity] {
		return
	}
	for id := range f.by[s.identity] {
		o := f.open[id]
		began := s.at
		if o.at.After(began) {
			began = o.at
		}
		if o == s || o.host == s.host || o.client == s.client || to.Sub(began) < minOverlap {
			continue
		}
		f.share(s, o, to.Sub(began))
		return
	}
}

func (f *follower) share(s, o *session, overlap time.Duration) {
	found := Finding{
		Check: CertificateShared, Reason: "CERTIFICATE_SHARED_BY_MULTIPLE_DEVICES", Subject: "device:" + s.device, Device: s.device, Fleet: s.fleet, Cert: s.cert,
		Summary: fmt.Sprintf("the certificate of %s was in use from %s and %s at once", s.device, s.host, o.host),
		Evidence: map[string]string{
			"clients": s.client + ", " + o.client, "addresses": s.host + ", " + o.host, "overlap": overlap.Round(time.Second).String(), "since": stamp(s.at),
		},
	}
	if s.cert.IsZero() {
		found.Check, found.Reason = SecretShared, "SECRET_SHARED_BY_MULTIPLE_DEVICES"
		found.Summary = fmt.Sprintf("a secret of %s was in use from %s and %s at once", s.device, s.host, o.host)
		found.Evidence["credential"] = s.identity
	}
	if len(f.shared) < maxTracked {
		f.shared[s.identity] = true
		f.tell(found)
	}
}

func (f *follower) tell(found Finding) { f.found = append(f.found, found) }

// end looks at what is still open.
func (f *follower) end(now time.Time) {
	for _, id := range f.order {
		if s := f.open[id]; s != nil {
			f.compare(s, now)
		}
	}
}

// hostOf is the address without the port.
func hostOf(remote string) string {
	if p, err := netip.ParseAddrPort(remote); err == nil {
		return p.Addr().Unmap().String()
	}
	return remote
}
