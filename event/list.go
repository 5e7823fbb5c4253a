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

func (l *Log) read(ctx context.Context, r store.Reader, query string, args ...any) (list []row, err error) {
	rows, err := r.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var e row
		var seq sql.NullInt64
		var at int64
		err := rows.Scan(&e.id, &seq, &at, &e.Type, &e.Actor, &e.Device, &e.Fleet, &e.Cert.Issuer, &e.Cert.Serial,
			&e.Remote, &e.Via, &e.Code, &e.Reason, &e.data, &e.Hash)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", store.Wrap(err))
		}
		e.Seq, e.At = seq.Int64, store.Time(at)
		if e.data != "" && json.Unmarshal([]byte(e.data), &e.Data) != nil {
			// Somebody changed it. The line is shown all the same: one bad line must
			// not hide the others, and Verify finds it.
			e.Data = map[string]string{"unreadable": e.data}
		}
		list = append(list, e)
	}
	return list, store.Wrap(rows.Err())
}

// Filter chooses events.
type Filter struct {
	Device string
	Type   countersign.EventType
	Since  time.Time
	Newest bool  // newest first, else oldest first
	After  int64 // keyset: the next that List gave; 0 at the start
	Limit  int   // at most maxPage; 0 is that
}

// maxPage bounds a page of a list: a thousand events are a few MB at the worst.
const maxPage = 1000

// List reads events in the order they were written, sealed or not; next is the
// After of the following page, 0 at the end.
func (l *Log) List(ctx context.Context, f Filter) (list []countersign.Event, next int64, err error) {
	var where []string
	var args []any
	add := func(cond string, v any) {
		args = append(args, v)
		where = append(where, fmt.Sprintf(cond, len(args)))
	}
	order, cmp := "ASC", "id > $%d"
	if f.Newest {
		order, cmp = "DESC", "id < $%d"
	}
	if f.After != 0 || !f.Newest {
		add(cmp, f.After)
	}
	if f.Device != "" {
		add("device = $%d", f.Device)
		where = append(where, "device <> ''") // lets the partial index serve
	}
	if f.Type != "" {
		add("type = $%d", string(f.Type))
	}
	if !f.Since.IsZero() {
		add("at >= $%d", store.Micros(f.Since))
	}
	cond := ""
	if len(where) > 0 {
		cond = "WHERE " + strings.Join(where, " AND ")
	}
	if f.Limit < 1 || f.Limit > maxPage {
		f.Limit = maxPage
	}
	args = append(args, f.Limit+1)
	found, err := l.read(ctx, l.DB, fmt.Sprintf(`SELECT %s FROM event %s ORDER BY id %s LIMIT $%d`, columns, cond, order, len(args)), args...)
	if err != nil {
		return nil, 0, err
	}
	if len(found) > f.Limit {
		found = found[:f.Limit]
		next = found[f.Limit-1].id
	}
	for _, e := range found {
		list = append(list, e.Event)
	}
	return list, next, nil
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
	list, err := l.read(ctx, l.DB, `SELECT `+columns+` FROM event WHERE type = $1 AND id > $2 AND data LIKE $3 ORDER BY id DESC LIMIT 1`,
		string(countersign.SessionOpened), after, `%"session":"`+session+`"%`)
	if err != nil || len(list) == 0 {
		return opened, false, sure, err
	}
	o := list[0]
	ends, err := l.read(ctx, l.DB, `SELECT `+columns+` FROM event WHERE device = $1 AND device <> '' AND type = $2 AND id > $3 AND data LIKE $4 LIMIT 1`,
		o.Device, string(countersign.SessionClosed), o.id, `%"session":"`+session+`"%`)
	return o.Event, len(ends) == 0, true, err
}
