package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	countersign "github.com/countersign-iot/countersign"
)

// Open opens the database, creating a SQLite file that is not there, and brings
// its schema up to this program's version. It fails with countersign.Conflict,
// and what to do, when another process has the SQLite file open or when the
// schema is newer than this program, and with countersign.Unavailable when
// PostgreSQL cannot be reached.
func Open(ctx context.Context, o Options) (*DB, error) {
	if o.Now == nil {
		return nil, errors.New("couldn't open the database: Options.Now is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.migrations == nil {
		o.migrations = embedded()
	}
	db, err := connect(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("couldn't open the database: %w", err)
	}
	db.reads = o.observe(db.reads, false)
	if o.Existing {
		if err := db.refuseEmpty(ctx); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	if err := db.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("couldn't migrate the database: %w", err), db.Close())
	}
	return db, nil
}

// refuseEmpty returns ErrEmpty where our tables are not.
func (db *DB) refuseEmpty(ctx context.Context) error {
	var n int
	err := db.QueryRow(ctx, db.dialect.tables).Scan(&n)
	if err == nil && n == 0 {
		err = ErrEmpty
	}
	if err != nil {
		return fmt.Errorf("couldn't open the database: %w", err)
	}
	return nil
}

func connect(ctx context.Context, o Options) (*DB, error) {
	switch scheme, rest, _ := strings.Cut(o.URL, ":"); {
	case scheme == "sqlite" && rest != "":
		return openSQLite(ctx, o, rest)
	case scheme == "postgres" || scheme == "postgresql":
		return openPostgres(ctx, o)
	}
	// The URL is not repeated: it may hold a password.
	return nil, countersign.Errorf(countersign.BadRequest, "the database URL has no scheme that is known here").
		WithNext(`write "sqlite:/path/file.db" or "postgres://user@host/name"`)
}
