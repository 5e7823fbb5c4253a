// Package keycheck keeps a check value of each symmetric key in the database, so that
// a node with another key, or without one, is noticed at its start instead of when it
// refuses the secrets of honest devices. A check value is derived from its key and
// shows nothing of it. The keys of authorities need none: their certificates are on
// record.
package keycheck

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
)

// Kind is how check values are derived: HKDF with SHA-256 (RFC 5869), 32 octets.
const Kind = "hkdf-sha256"

// derived are the keys that are derived from the sealing key and have a check value of
// their own: a program that derives them in another way must not pass for this one.
var derived = []string{"access tokens", "watermark"}

// Why a key does not fit the database.
var (
	// ErrOther means that the key is not the one that the database knows.
	ErrOther = errors.New("it is not the one that this database was founded with")
	// ErrNewer means that a newer program recorded a check value that this one cannot compare.
	ErrNewer = errors.New("a newer program recorded its check value")
)

// Value is a check value.
type Value struct {
	Name  string // seal, or seal/purpose of a key that is derived from it
	Kind  string
	Value []byte
}

// Of returns the check values of the sealing key and of the keys derived from it.
func Of(s *keystore.Sealer) ([]Value, error) {
	own, err := s.Derive(keystore.CheckPurpose)
	if err != nil {
		return nil, err
	}
	list := []Value{{"seal", Kind, own}}
	for _, purpose := range derived {
		v, err := s.Derive(keystore.CheckPurpose + " of " + purpose)
		if err != nil {
			return nil, err
		}
		list = append(list, Value{"seal/" + purpose, Kind, v})
	}
	return list, nil
}

// List returns the check values on record; none for a database that is older than they
// are.
func List(ctx context.Context, r store.Reader) (list []Value, err error) {
	list, err = store.List(ctx, r, func(row store.Row) (v Value, err error) {
		err = row.Scan(&v.Name, &v.Kind, &v.Value)
		return v, err
	}, `SELECT name, kind, value FROM key_check ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read the check values of keys: %w", err)
	}
	return list, nil
}

// Compare compares what this node has with what is on record, and returns ErrOther or
// ErrNewer. Nothing on record fits everything.
func Compare(have, recorded []Value) error {
	for _, want := range recorded {
		i := slices.IndexFunc(have, func(v Value) bool { return v.Name == want.Name })
		switch {
		case i < 0 || want.Kind != have[i].Kind:
			return ErrNewer
		case subtle.ConstantTimeCompare(have[i].Value, want.Value) != 1:
			return ErrOther
		}
	}
	return nil
}

// Record writes check values over those on record.
func Record(ctx context.Context, tx *store.Tx, list []Value, now time.Time) error {
	for _, v := range list {
		_, err := tx.Exec(ctx, `INSERT INTO key_check (name, kind, value, made_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, value = excluded.value, made_at = excluded.made_at`,
			v.Name, v.Kind, v.Value, store.Micros(now))
		if err != nil {
			return fmt.Errorf("record the check value of %s: %w", v.Name, err)
		}
	}
	return nil
}
