package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

const (
	// fillStatement is how many rows one INSERT writes: with the columns of a certificate
	// well below the 32,766 parameters of SQLite and the 65,535 of PostgreSQL.
	fillStatement = 64
	// fillCommit is how many rows one transaction writes: a commit costs a sync.
	fillCommit = 64 * fillStatement
	// fillExpiry spreads the ends of certificates over a month, in seconds.
	fillExpiry = 30 * 24 * 3600
	// fillLeast is for how long each is good at least: longer than a run.
	fillLeast = 24 * time.Hour
	// maxFill is ten times the most that is promised, and keeps names of one length.
	maxFill = 100_000_000
)

// filling is how much a database holds before it is measured.
type filling struct {
	devices, certificates, revoked, events int
}

// check refuses what does not fit together.
func (f *filling) check() error {
	for _, n := range []int{f.devices, f.certificates, f.revoked, f.events} {
		if n < 0 || n > maxFill {
			return fmt.Errorf("%d rows are not between 0 and %d", n, maxFill)
		}
	}
	if f.devices == 0 || f.certificates < f.devices+f.revoked {
		return fmt.Errorf("-certificates %d must be at least -devices %d and -revoked %d together, and there must be a device: each keeps one that is good", f.certificates, f.devices, f.revoked)
	}
	return nil
}

// record is a row that the server itself wrote, of which others are made: in this way a fill
// has every column that this version of the schema has.
type record struct {
	table   string
	columns []string
	values  []any
}

// set replaces the value of a column.
func (r *record) set(row []any, column string, value any) {
	for i, c := range r.columns {
		if c == column {
			row[i] = value
			return
		}
	}
}

// text returns the value of a column as text, and number as a number.
func (r *record) text(column string) (s string) {
	for i, c := range r.columns {
		if c == column {
			s, _ = r.values[i].(string)
		}
	}
	return s
}

func (r *record) number(column string) (n int64) {
	for i, c := range r.columns {
		if c == column {
			n, _ = r.values[i].(int64)
		}
	}
	return n
}

// sampled reads the rows of a table that are about a device, without the columns that the
// database or the filler numbers.
func sampled(ctx context.Context, r store.Reader, table, column, device string) (found []record, err error) {
	rows, err := r.Query(ctx, "SELECT * FROM "+table+" WHERE "+column+" = $1", device)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		one := record{table: table, columns: columns, values: make([]any, len(columns))}
		into := make([]any, len(columns))
		for i := range into {
			into[i] = &one.values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		found = append(found, one)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("table %s has no row about %s", table, device)
	}
	return found, rows.Err()
}

// without returns the record without a column, which the database fills in.
func (r *record) without(column string) record {
	left := record{table: r.table}
	for i, c := range r.columns {
		if c != column {
			left.columns, left.values = append(left.columns, c), append(left.values, r.values[i])
		}
	}
	return left
}

// filler writes rows directly, past the server, which is not running.
type filler struct {
	db      *store.DB
	filling filling
	device  record
	cert    record
	events  []record
	begin   time.Time
}

// fill makes many devices of one that the server at the database knows.
func fill(ctx context.Context, db *store.DB, size filling, device string) error {
	f := &filler{db: db, filling: size, begin: now()}
	if err := f.sample(ctx, device); err != nil {
		return fmt.Errorf("read what to fill the database with: %w", err)
	}
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{{"devices", f.fillDevices}, {"certificates", f.fillCertificates}, {"events", f.fillEvents}, {"lists", f.outdate}} {
		if err := part.do(ctx); err != nil {
			return fmt.Errorf("fill in %s: %w", part.name, err)
		}
	}
	return nil
}

// outdate has the revocation lists made anew from what was filled in: no change of them was
// noted.
func (f *filler) outdate(ctx context.Context) error {
	numbers, err := ca.ListNumbers(ctx, f.db)
	if err != nil {
		return err
	}
	for list := range numbers {
		numbers[list]++
	}
	return f.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return ca.RaiseNumbers(ctx, tx, numbers) })
}

func (f *filler) sample(ctx context.Context, device string) error {
	devices, err := sampled(ctx, f.db, "device", "id", device)
	if err != nil {
		return err
	}
	certs, err := sampled(ctx, f.db, "certificate", "device", device)
	if err != nil {
		return err
	}
	events, err := sampled(ctx, f.db, "event", "device", device)
	if err != nil {
		return err
	}
	for i := range events {
		events[i] = events[i].without("id")
	}
	f.device, f.cert, f.events = devices[0], certs[0], events
	return nil
}

func filledName(i int) string { return fmt.Sprintf("filled-%09d", i) }

func (f *filler) fillDevices(ctx context.Context) error {
	return f.insert(ctx, &f.device, f.filling.devices, func(i int, row []any) {
		f.device.set(row, "id", filledName(i))
		f.device.set(row, "folded", filledName(i))
	})
}

// fillCertificates makes for each device one that is in use and, in turn, older ones, of which
// the last are revoked. Serials are random. All have the DER of one: what is read at size is
// the row.
func (f *filler) fillCertificates(ctx context.Context) error {
	end, used := store.Micros(f.begin.Add(fillLeast)), f.cert.number("used_at")
	return f.insert(ctx, &f.cert, f.filling.certificates, func(i int, row []any) {
		var random [84]byte
		_, _ = rand.Read(random[:])       // it never fails
		random[0] = random[0]&0x7f | 0x40 // 20 octets, positive
		f.cert.set(row, "serial", string(countersign.SerialOf(new(big.Int).SetBytes(random[:20]))))
		f.cert.set(row, "fingerprint", hex.EncodeToString(random[20:52]))
		f.cert.set(row, "key_hash", hex.EncodeToString(random[52:]))
		f.cert.set(row, "device", filledName(i%f.filling.devices))
		f.cert.set(row, "not_after", end+int64(i%fillExpiry)*time.Second.Microseconds())
		switch {
		case i >= f.filling.certificates-f.filling.revoked:
			f.cert.set(row, "state", "revoked")
			f.cert.set(row, "reason", int64(4)) // superseded (RFC 5280, 5.3.1)
			f.cert.set(row, "revoked_at", used)
			f.cert.set(row, "replaced", true)
		case i >= f.filling.devices:
			f.cert.set(row, "state", "superseded")
			f.cert.set(row, "replaced", true)
		}
	})
}

// fillEvents continues the log, sealed, a millisecond apart until now, and sets the readers
// of the log to its end: they have read it when a server has run that long.
func (f *filler) fillEvents(ctx context.Context) error {
	log := &event.Log{DB: f.db, Now: now}
	for {
		if n, err := log.Seal(ctx); err != nil || n == 0 {
			if err != nil {
				return err
			}
			break
		}
	}
	seq, hash, err := log.Head(ctx)
	if err != nil {
		return err
	}
	n := f.filling.events
	for i := range f.events {
		one := &f.events[i]
		if len(one.columns) != len(f.events[0].columns) {
			return errors.New("events differ in their columns")
		}
	}
	err = f.insert(ctx, &f.events[0], n, func(i int, row []any) {
		of := &f.events[i%len(f.events)]
		copy(row, of.values)
		seq++
		e := countersign.Event{
			Seq: seq, At: store.Time(store.Micros(f.begin) - int64(n-i)*time.Millisecond.Microseconds()), Type: countersign.EventType(of.text("type")), Actor: countersign.Actor(of.text("actor")),
			Device: filledName(i % f.filling.devices), Fleet: of.text("fleet"), Remote: of.text("remote"), Via: of.text("via"), Code: countersign.Code(of.text("code")), Reason: of.text("reason"),
		}
		e.Cert.Issuer, e.Cert.Serial = of.text("issuer"), countersign.Serial(of.text("serial"))
		hash = event.Next(hash, e, of.text("data"))
		of.set(row, "seq", seq)
		of.set(row, "at", store.Micros(e.At))
		of.set(row, "device", e.Device)
		of.set(row, "hash", hash)
	})
	if err != nil {
		return err
	}
	return f.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE event_head SET seq = $1, hash = $2, id = (SELECT max(id) FROM event) WHERE name = 'log'`, seq, hash)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE event_cursor SET seq = $1 WHERE name NOT LIKE '%.due'`, seq)
		return err
	})
}

// insert writes n rows like one, which vary changes.
func (f *filler) insert(ctx context.Context, like *record, n int, vary func(i int, row []any)) error {
	for done := 0; done < n; {
		type statement struct {
			text string
			args []any
		}
		var batch []statement
		for end := min(n, done+fillCommit); done < end; {
			rows := min(fillStatement, end-done)
			args := make([]any, 0, rows*len(like.columns))
			for range rows {
				args = append(args, like.values...)
				vary(done, args[len(args)-len(like.columns):])
				done++
			}
			batch = append(batch, statement{like.insertion(rows), args})
		}
		err := f.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			for _, s := range batch {
				if _, err := tx.Exec(ctx, s.text, s.args...); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// insertion is the statement that writes rows.
func (r *record) insertion(rows int) string {
	var b strings.Builder
	b.WriteString("INSERT INTO " + r.table + " (" + strings.Join(r.columns, ", ") + ") VALUES ")
	for i := range rows * len(r.columns) {
		switch {
		case i == 0:
			b.WriteString("($")
		case i%len(r.columns) == 0:
			b.WriteString("), ($")
		default:
			b.WriteString(", $")
		}
		b.WriteString(strconv.Itoa(i + 1))
	}
	b.WriteByte(')')
	return b.String()
}
