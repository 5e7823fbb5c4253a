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

// row is an event with what the log alone knows of it.
type row struct {
	countersign.Event
	id   int64
	data string // Data as it is on record, which is what the hash covers
}

// read returns the events of a query of columns.
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
		// It was changed. The line is shown all the same: one bad line must not hide the
		// others, and Verify finds it.
		e.Data = map[string]string{"unreadable": e.data}
	}
	return e, err
}

// Filter chooses events.
type Filter struct {
	Device string
	Type   countersign.EventType
	Since  time.Time
	Newest bool  // newest first, else oldest first
	After  int64 // keyset: the next that List gave; 0 at the start
	Limit  int   // at most store.MaxPage; 0 is that
}

// List reads events in the order they were written, sealed or not; next is the
// After of the following page, 0 at the end.
func (l *Log) List(ctx context.Context, f Filter) (list []countersign.Event, next int64, err error) {
	var q store.Query
	order := "ASC"
	if f.Newest {
		order = "DESC"
		q.If(f.After != 0, "id < ?", f.After)
	} else {
		q.And("id > ?", f.After)
	}
	q.If(f.Device != "", "device = ? AND device <> ''", f.Device) // the second lets the partial index serve
	// In an expression beside a device, because SQLite would take the index of the type
	// otherwise, which has more events than a device.
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

// Sealed returns the sealed events after one, at most limit. Sealing numbers them in
// the order of commits, so none appears later below one that was read.
func Sealed(ctx context.Context, r store.Reader, after int64, limit int) ([]countersign.Event, error) {
	list, err := read(ctx, r, `SELECT `+columns+` FROM event WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
	return events(list), err
}

// TimeAt returns when a sealed event happened or, where the log does not hold it, the
// one before it; the zero time if there is none.
func TimeAt(ctx context.Context, r store.Reader, seq int64) (time.Time, error) {
	var at int64
	err := r.QueryRow(ctx, `SELECT at FROM event WHERE seq <= $1 ORDER BY seq DESC LIMIT 1`, seq).Scan(&at)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, fmt.Errorf("read the time of event %d: %w", seq, store.Wrap(err))
	}
	return store.Time(at), nil
}

// openingsSearched bounds how many openings of sessions are searched for one: some tenths
// of a second of reading, and the sessions of a week of a large fleet.
const openingsSearched = 200_000

// OpenSession looks for a session that no end is on record of, by the record of its
// opening: on any node. sure is false where older openings than were searched may have it.
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
