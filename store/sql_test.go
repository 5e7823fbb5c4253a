package store_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/google/go-cmp/cmp"
)

// letters fills a table of the schema with rows a, b, c, ... of the values 0, 1, 2, ...
func letters(t *testing.T, db *store.DB, n int) {
	t.Helper()
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for i := range n {
			_, err := tx.Exec(ctx, `INSERT INTO event_cursor (name, seq) VALUES ($1, $2)`, string(rune('a'+i)), i)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestListReadsWhatTheQueryChooses(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		letters(t, db, 7)
		for _, tt := range []struct {
			name  string
			build func(*store.Query)
			want  []string
		}{
			{"no condition", func(*store.Query) {}, []string{"a", "b", "c", "d", "e", "f", "g"}},
			{"two", func(q *store.Query) { q.And("seq > ?", 1); q.And("(name, seq) < (?, ?)", "d", 9) }, []string{"c", "d"}},
			{"those that hold", func(q *store.Query) { q.If(false, "name = ?", "a"); q.If(true, "name = ?", "b") }, []string{"b"}},
			{"a list", func(q *store.Query) {
				q.And("seq > ?", 0)
				q.And("name IN " + store.In(q, []countersign.Serial{"a", "c", "g"}))
			}, []string{"c", "g"}},
			{"an empty list", func(q *store.Query) { q.And("name IN " + store.In(q, []string(nil))) }, nil},
		} {
			var q store.Query
			tt.build(&q)
			got, err := store.List(t.Context(), db, store.Scan[string], `SELECT name FROM event_cursor`+q.Where()+` ORDER BY name LIMIT `+q.Arg(99), q.Args...)
			if d := cmp.Diff(tt.want, got); d != "" || err != nil {
				t.Errorf("%s: %v (-want +got)\n%s", tt.name, err, d)
			}
		}
	})
}

func TestPagesReadsEachRowOnce(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		letters(t, db, 7)
		for limit := 1; limit <= 8; limit++ {
			reads := 0
			all := store.Pages(func(after string) ([]string, string, error) {
				reads++
				list, err := store.List(t.Context(), db, store.Scan[string], `SELECT name FROM event_cursor WHERE name > $1 ORDER BY name LIMIT $2`, after, limit+1)
				page, next := store.Page(list, limit, func(s *string) string { return *s })
				return page, next, err
			})
			var got []string
			for name, err := range all {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, name)
			}
			if want := (7 + limit - 1) / limit; len(got) != 7 || !slices.IsSorted(got) || reads != want {
				t.Errorf("pages of %d: got %v in %d reads, want 7 in %d", limit, got, reads, want)
			}
		}
	})
}

func TestRowsEndWithTheirError(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		letters(t, db, 3)
		bad := errors.New("no letter")
		read := func(row store.Row) (string, error) {
			name, err := store.Scan[string](row)
			if name == "b" {
				err = bad
			}
			return name, err
		}
		if list, err := store.List(t.Context(), db, read, `SELECT name FROM event_cursor ORDER BY name`); !errors.Is(err, bad) || list != nil {
			t.Errorf("a row that cannot be read: got %v, %v", list, err)
		}
		if _, err := store.List(t.Context(), db, read, `SELECT name FROM no_such_table`); err == nil {
			t.Error("a query that fails: got no error")
		}
		for name, err := range store.Rows(t.Context(), db, read, `SELECT name FROM event_cursor ORDER BY name`) {
			if name != "a" || err != nil {
				t.Errorf("got %q, %v", name, err)
			}
			break // leaves the connection free, else the next read would wait for it
		}
		calls := 0
		for _, err := range store.Pages(func(int) ([]int, int, error) { calls++; return nil, 1, bad }) {
			if !errors.Is(err, bad) {
				t.Errorf("got %v", err)
			}
		}
		if calls != 1 {
			t.Errorf("a page that failed was read %d times", calls)
		}
	})
}
