package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/google/go-cmp/cmp"
)

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func oneMigration() fstest.MapFS {
	return fstest.MapFS{"0001_first.sql": file(`
		CREATE TABLE counter (id {{identity}}, name TEXT NOT NULL UNIQUE, data {{bytes}});
		INSERT INTO counter (name, data) VALUES ('one', NULL); -- ; a comment with 'quotes
		INSERT INTO counter (name, data) VALUES ('semi;colon', NULL);`)}
}

func twoMigrations() fstest.MapFS {
	files := oneMigration()
	files["0002_second.sql"] = file(`INSERT INTO counter (name) VALUES ('two')`)
	return files
}

// eachURL runs a case on an empty database of each kind.
func eachURL(t *testing.T, run func(t *testing.T, url string)) {
	t.Run("sqlite", func(t *testing.T) { run(t, storetest.SQLiteURL(t)) })
	t.Run("postgres", func(t *testing.T) { run(t, storetest.PostgresURL(t)) })
}

func openWith(t *testing.T, url string, files fstest.MapFS) (*store.DB, error) {
	return store.Open(t.Context(), store.WithMigrations(store.Options{URL: url, Now: time.Now}, files))
}

func mustOpenWith(t *testing.T, url string, files fstest.MapFS) *store.DB {
	t.Helper()
	db, err := openWith(t, url, files)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestOpenAppliesWhatIsMissing(t *testing.T) {
	t.Parallel()
	eachURL(t, func(t *testing.T, url string) {
		if err := mustOpenWith(t, url, oneMigration()).Close(); err != nil {
			t.Fatal(err)
		}
		db := mustOpenWith(t, url, twoMigrations())
		if diff := cmp.Diff([]string{"one", "semi;colon", "two"}, names(t, db)); diff != "" {
			t.Error(diff)
		}
		var id, applied int64
		err := db.QueryRow(t.Context(), `SELECT max(c.id), min(v.applied_at) FROM counter c, schema_version v`).Scan(&id, &applied)
		if err != nil || id != 3 || applied == 0 {
			t.Errorf("identity and time applied: got %d, %d, %v, want 3 and a time", id, applied, err)
		}
	})
}

func TestOpenRefusesNewerSchema(t *testing.T) {
	t.Parallel()
	eachURL(t, func(t *testing.T, url string) {
		if err := mustOpenWith(t, url, twoMigrations()).Close(); err != nil {
			t.Fatal(err)
		}
		_, err := openWith(t, url, oneMigration())
		if countersign.CodeOf(err) != countersign.Conflict || !strings.Contains(err.Error(), "schema version 2") {
			t.Errorf("Open: got %v, want Conflict that names version 2", err)
		}
		if p := countersign.Public(err); p.Next == "" {
			t.Error("Open: the refusal names no next step")
		}
		db := mustOpenWith(t, url, twoMigrations()) // and it was left as it was
		if got := len(names(t, db)); got != 3 {
			t.Errorf("rows: got %d, want 3", got)
		}
	})
}

func TestFailedMigrationLeavesNothing(t *testing.T) {
	t.Parallel()
	eachURL(t, func(t *testing.T, url string) {
		files := oneMigration()
		files["0002_second.sql"] = file(`INSERT INTO counter (name) VALUES ('two'); INSERT INTO nowhere VALUES (1)`)
		if _, err := openWith(t, url, files); err == nil || !strings.Contains(err.Error(), "0002_second") {
			t.Fatalf("Open: got %v, want an error that names the migration", err)
		}
		db := mustOpenWith(t, url, twoMigrations())
		if diff := cmp.Diff([]string{"one", "semi;colon", "two"}, names(t, db)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestOpenRefusesMisnumberedMigrations(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]fstest.MapFS{
		"gap":       {"0001_a.sql": file("SELECT 1"), "0003_b.sql": file("SELECT 1")},
		"duplicate": {"0001_a.sql": file("SELECT 1"), "0001_b.sql": file("SELECT 1")},
		"unnamed":   {"0001.sql": file("SELECT 1")},
		"words":     {"first_a.sql": file("SELECT 1")},
	} {
		if db, err := openWith(t, storetest.SQLiteURL(t), files); err == nil {
			t.Errorf("%s: got nil, want an error (%v)", name, db.Close())
		}
	}
}

func TestNodesStartingTogetherMigrateOnce(t *testing.T) {
	t.Parallel()
	url := storetest.PostgresURL(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			db, err := openWith(t, url, twoMigrations())
			if err != nil {
				t.Errorf("Open: %v", err)
				return
			}
			_ = db.Close()
		})
	}
	wg.Wait()
	if got := len(names(t, mustOpenWith(t, url, twoMigrations()))); got != 3 {
		t.Errorf("rows after 4 nodes migrated: got %d, want 3", got)
	}
}

func TestExistingRefusesAnEmptyDatabaseAndLeavesItSo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "c.db")
	open := func(url string) error {
		db, err := store.Open(t.Context(), store.Options{URL: url, Now: time.Now, Existing: true, Reserve: 4 << 20})
		if err == nil {
			err = db.Close()
		}
		return err
	}
	if err := open("sqlite:" + path); !errors.Is(err, store.ErrEmpty) {
		t.Errorf("Open of no file: got %v, want ErrEmpty", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("files left: got %v, %v, want none", left, err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open("sqlite:" + path); !errors.Is(err, store.ErrEmpty) {
		t.Errorf("Open of an empty file: got %v, want ErrEmpty", err)
	}
	storetest.OpenURL(t, "sqlite:"+filepath.Join(dir, "founded.db"))
	url := storetest.PostgresURL(t)
	if err := open(url); !errors.Is(err, store.ErrEmpty) {
		t.Errorf("Open of an empty PostgreSQL database: got %v, want ErrEmpty", err)
	}
	if err := storetest.OpenURL(t, url).Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(url); err != nil {
		t.Errorf("Open of one with our tables: %v", err)
	}
}
