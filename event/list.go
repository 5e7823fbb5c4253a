package event

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const columns = `id, seq, at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data, hash`

// row is an event with the columns that only this package uses.
type row struct {
	countersign.Event
	id   int64
	data string // Data as it is on record; the hash covers this text
}

// read returns the events of a query that selects columns.
func read(ctx context.Context, r store.Reader, query string, args ...any) ([]row, error) {
	list, err := store.List(ctx, r, scan, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return list, nil
}

func scan(from store.Row) (e row, err error) {
	var seq sql.NullInt64
	var at int64
	err = from.Scan(&e.id, &seq, &at, &e.Type, &e.Actor, &e.Device, &e.Fleet, &e.Cert.Issuer, &e.Cert.Serial,
		&e.Remote, &e.Via, &e.Code, &e.Reason, &e.data, &e.Hash)
	e.Seq, e.At = seq.Int64, store.Time(at)
	if e.data != "" && json.Unmarshal([]byte(e.data), &e.Data) != nil {
		// The row was changed. It is returned nevertheless, so that one bad row does not
		// hide the others. Verify finds it.
		e.Data = map[string]string{"unreadable": e.data}
	}
	return e, err
}

// Filter selects events.
type Filter struct {
	Device string
	Type   countersign.EventType
	Since  time.Time
	Newest bool  // newest first, else oldest first
	After  int64 // next of the previous page; 0 for the first page
	Limit  int   // at most store.MaxPage, which is also the default
}

// List reads one page of events in the order in which they were written, sealed or not.
// next is the After of the following page; 0 on the last page.
func (l *Log) List(ctx context.Context, f Filter) (list []countersign.Event, next int64, err error) {
	var q store.Query
	order, from := "ASC", int64(0)
	if !f.Since.IsZero() {
		if from, err = firstSince(ctx, l.DB, f.Since); err != nil {
			return nil, 0, err
		}
	}
	if f.Newest {
		order = "DESC"
		q.If(f.After != 0, "id < ?", f.After)
		q.If(from > 0, "id >= ?", from)
	} else {
		q.And("id > ?", max(f.After, from-1))
	}
	q.If(f.Device != "", "device = ? AND device <> ''", f.Device) // the second lets the partial index serve
	// With a device, the type is compared in an expression. Otherwise SQLite would use the
	// index of types, and a type has more events than a device.
	q.If(f.Type != "" && f.Device == "", "type = ?", string(f.Type))
	q.If(f.Type != "" && f.Device != "", "type || '' = ?", string(f.Type))
	q.If(!f.Since.IsZero(), "at >= ?", store.Micros(f.Since))
	limit := store.PageSize(f.Limit)
	found, err := read(ctx, l.DB, `SELECT `+columns+` FROM event`+q.Where()+` ORDER BY id `+order+` LIMIT `+q.Arg(limit+1), q.Args...)
	if err != nil {
		return nil, 0, err
	}
	found, next = store.Page(found, limit, func(e *row) int64 { return e.id })
	return events(found), next, nil
}

func events(rows []row) []countersign.Event {
	list := make([]countersign.Event, len(rows))
	for i := range rows {
		list[i] = rows[i].Event
	}
	return list
}

// Sealed returns the sealed events after a sequence number, at most limit. Events are
// sealed in the order of their commits, so none appears later with a lower number.
func Sealed(ctx context.Context, r store.Reader, after int64, limit int) ([]countersign.Event, error) {
	list, err := read(ctx, r, `SELECT `+columns+` FROM event WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
	return events(list), err
}

// TimeAt returns the time of a sealed event or, if it is not in the log, of the one before
// it; the zero time if there is none.
func TimeAt(ctx context.Context, r store.Reader, seq int64) (time.Time, error) {
	var at int64
	err := r.QueryRow(ctx, `SELECT at FROM event WHERE seq <= $1 ORDER BY seq DESC LIMIT 1`, seq).Scan(&at)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, fmt.Errorf("read the time of event %d: %w", seq, store.Wrap(err))
	}
	return store.Time(at), nil
}

// openingsSearched bounds the session.opened events that OpenSession searches: the sessions
// of a week of a large fleet, which take some tenths of a second to read.
const openingsSearched = 200_000

// OpenSession returns the event that opened a session, on any node. found reports whether
// there is one and no end of the session is on record. sure is false if there are older
// events than were searched, so that one of them may have opened the session.
func (l *Log) OpenSession(ctx context.Context, session string) (opened countersign.Event, found, sure bool, err error) {
	if session == "" || strings.ContainsAny(session, `%_\"`) {
		return opened, false, true, nil // no session has such an id
	}
	var after int64
	err = l.DB.QueryRow(ctx, `SELECT id FROM event WHERE type = $1 ORDER BY id DESC LIMIT 1 OFFSET $2`, string(countersign.SessionOpened), openingsSearched).Scan(&after)
	if sure = errors.Is(err, sql.ErrNoRows); err != nil && !sure {
		return opened, false, false, fmt.Errorf("read the openings of sessions: %w", store.Wrap(err))
	}
	list, err := read(ctx, l.DB, `SELECT `+columns+` FROM event WHERE type = $1 AND id > $2 AND data LIKE $3 ORDER BY id DESC LIMIT 1`,
		string(countersign.SessionOpened), after, `%"session":"`+session+`"%`)
	if err != nil || len(list) == 0 {
		return opened, false, sure, err
	}
	o := list[0]
	ends, err := read(ctx, l.DB, `SELECT `+columns+` FROM event WHERE device = $1 AND device <> '' AND type || '' = $2 AND id > $3 AND data LIKE $4 LIMIT 1`,
		o.Device, string(countersign.SessionClosed), o.id, `%"session":"`+session+`"%`)
	return o.Event, len(ends) == 0, true, err
}
