package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign/store"
)

// pageRows is how many rows are in memory at once, whatever a table holds: about
// a megabyte of certificates.
const pageRows = 1000

func isNoRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }

// table says how rows of a kind are read page by page in the order of a key.
type table[R any] struct {
	name   string // in errors
	fields string // what scan reads
	from   string // what they are read from, with %s for the condition that the page puts on the key
	key    []string
	start  []any // before the first
	scan   func(*sql.Rows, *R) error
	last   func(*R) []any // the key of a row
}

// walk gives visit all rows of a table. A row that comes or changes while it walks
// is seen or not; the next audit sees it.
func (t table[R]) walk(ctx context.Context, r store.Reader, visit func(*R) error) error {
	marks := make([]string, len(t.key))
	for i := range marks {
		marks[i] = fmt.Sprintf("$%d", i+1)
	}
	keys := strings.Join(t.key, ", ")
	query := fmt.Sprintf("SELECT %s FROM %s ORDER BY %s LIMIT $%d", t.fields,
		fmt.Sprintf(t.from, "("+keys+") > ("+strings.Join(marks, ", ")+")"), keys, len(marks)+1)
	for after := t.start; after != nil; {
		page, err := t.page(ctx, r, query, append(append([]any{}, after...), pageRows))
		if err != nil {
			return fmt.Errorf("read %s: %w", t.name, err)
		}
		for i := range page {
			if err := visit(&page[i]); err != nil {
				return err
			}
		}
		if len(page) < pageRows {
			return nil
		}
		after = t.last(&page[len(page)-1])
	}
	return nil
}

func (t table[R]) page(ctx context.Context, r store.Reader, query string, args []any) (page []R, err error) {
	rows, err := r.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		page = append(page, *new(R))
		if err := t.scan(rows, &page[len(page)-1]); err != nil {
			return nil, store.Wrap(err)
		}
	}
	return page, store.Wrap(rows.Err())
}
