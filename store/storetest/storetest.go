// Package storetest starts a real database for tests: SQLite in a temporary folder,
// and PostgreSQL from Debian's binaries, started once for a test process. It is
// for tests only and holds no test double.
package storetest

import (
	"log/slog"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store"
)

// Each runs the same case on SQLite and on PostgreSQL, on a fresh database each.
// Without PostgreSQL's binaries that half is skipped, see [PostgresURL].
func Each(t *testing.T, run func(t *testing.T, db *store.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { run(t, Open(t)) })
	t.Run("postgres", func(t *testing.T) { run(t, OpenURL(t, PostgresURL(t))) })
}

// Open opens a fresh SQLite database that the test's end closes.
func Open(t testing.TB) *store.DB {
	t.Helper()
	return OpenURL(t, SQLiteURL(t))
}

// SQLiteURL names a database file that is not there yet.
func SQLiteURL(t testing.TB) string {
	t.Helper()
	return "sqlite:" + t.TempDir() + "/countersign.db"
}

// OpenURL opens the database at url; the test's end closes it.
func OpenURL(t testing.TB, url string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), store.Options{
		URL: url,
		Now: time.Now, //nolint:forbidigo // a test's clock is the real one unless it brings its own
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return db
}
