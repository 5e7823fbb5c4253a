package store

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	countersign "github.com/countersign-iot/countersign"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

func embedded() fs.FS {
	sub, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // the path is a constant
	}
	return sub
}

// migration is one file NNNN_name.sql. Numbers start at 1 and have no gap.
type migration struct {
	version int64
	name    string
	text    string
}

func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	all := make([]migration, 0, len(names))
	for _, name := range names {
		number, title, ok := strings.Cut(strings.TrimSuffix(name, ".sql"), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("migration %s is not named NNNN_name.sql", name)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		all = append(all, migration{version, title, string(text)})
	}
	slices.SortFunc(all, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	for i, m := range all {
		if m.version != int64(i)+1 {
			return nil, fmt.Errorf("migration %04d_%s: expected number %04d", m.version, m.name, i+1)
		}
	}
	return all, nil
}

// migrate applies what is missing, each migration in a transaction of its own.
// Each takes the lock and looks again, so nodes that start at once share the work.
func (db *DB) migrate(ctx context.Context) error {
	all, err := readMigrations(db.opts.migrations)
	if err != nil {
		return err
	}
	if at, err := db.version(ctx); err == nil && at == int64(len(all)) {
		return nil // without a write: the disk may be full
	}
	for more := true; more; {
		err := db.Write(ctx, func(ctx context.Context, tx *Tx) error {
			more, err = db.migrateOne(ctx, tx, all)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// version returns the version of the schema.
func (db *DB) version(ctx context.Context) (int64, error) {
	var at sql.NullInt64
	err := db.QueryRow(ctx, `SELECT max(version) FROM schema_version`).Scan(&at)
	return at.Int64, err
}

// migrateOne applies the next migration and reports whether there was one.
func (db *DB) migrateOne(ctx context.Context, tx *Tx, all []migration) (bool, error) {
	if err := tx.Lock(ctx, "schema_version"); err != nil {
		return false, err
	}
	if _, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS schema_version (
		version BIGINT PRIMARY KEY, name TEXT NOT NULL, applied_at BIGINT NOT NULL)`); err != nil {
		return false, err
	}
	var at sql.NullInt64
	if err := tx.QueryRow(ctx, `SELECT max(version) FROM schema_version`).Scan(&at); err != nil {
		return false, err
	}
	known := int64(len(all))
	switch {
	case at.Int64 > known:
		return false, countersign.Errorf(countersign.Conflict,
			"the database has schema version %d, this program knows versions up to %d", at.Int64, known).
			WithNext("run the newer countersign that wrote it, or restore the backup taken before the upgrade")
	case at.Int64 == known:
		return false, nil
	}
	m := all[at.Int64]
	if _, err := tx.Exec(ctx, db.dialect.words.Replace(m.text)); err != nil {
		return false, fmt.Errorf("migration %04d_%s: %w", m.version, m.name, err)
	}
	_, err := tx.Exec(ctx, `INSERT INTO schema_version (version, name, applied_at) VALUES ($1, $2, $3)`,
		m.version, m.name, Micros(db.opts.Now()))
	if err != nil {
		return false, err
	}
	tx.AfterCommit(func() {
		db.opts.Log.InfoContext(ctx, "database migrated", "version", m.version, "name", m.name)
	})
	return true, nil
}
