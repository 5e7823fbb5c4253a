package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// MaxPage bounds a page of a list: a thousand rows of any table are a few megabytes.
const MaxPage = 1000

// PageSize returns how many rows a page has that a caller wants limit of: all that
// one may have where it names none, or too many.
func PageSize(limit int) int {
	if limit < 1 || limit > MaxPage {
		return MaxPage
	}
	return limit
}

// Row is one row of a result: *sql.Row and *sql.Rows.
type Row interface{ Scan(dest ...any) error }

// Rows returns the rows of a query as scan reads them. An error is the last that it
// yields. In a transaction the loop must not run another statement: PostgreSQL runs
// one at a time.
func Rows[T any](ctx context.Context, r Reader, scan func(Row) (T, error), q string, args ...any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		rows, err := r.Query(ctx, q, args...)
		if err != nil {
			yield(none, err)
			return
		}
		defer func() { _ = rows.Close() }() // rows.Err has what it can report
		for rows.Next() {
			v, err := scan(rows)
			if err != nil {
				yield(none, Wrap(err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(none, Wrap(err))
		}
	}
}

// maxIn bounds the values in one list of IN, so that queries have few different texts.
const maxIn = 200

// RowsIn is Rows for a query that ends in IN, over any number of values, some at a time.
func RowsIn[T any, V ~string](ctx context.Context, r Reader, scan func(Row) (T, error), q string, values []V) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for part := range slices.Chunk(values, maxIn) {
			var in Query
			places := In(&in, part)
			for v, err := range Rows(ctx, r, scan, q+" "+places, in.Args...) {
				if !yield(v, err) || err != nil {
					return
				}
			}
		}
	}
}

// List returns all rows of a query as scan reads them.
func List[T any](ctx context.Context, r Reader, scan func(Row) (T, error), q string, args ...any) (list []T, err error) {
	for v, err := range Rows(ctx, r, scan, q, args...) {
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// Scan reads a row of one column.
func Scan[T any](row Row) (v T, err error) {
	err = row.Scan(&v)
	return v, err
}

// Count returns the number that a query counts.
func Count(ctx context.Context, r Reader, q string, args ...any) (n int, err error) {
	err = r.QueryRow(ctx, q, args...).Scan(&n)
	return n, Wrap(err)
}

// RowError returns the error of reading one row: missing where there is none, otherwise
// that of the database with what was done; nil for nil.
func RowError(err, missing error, did string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return missing
	}
	return fmt.Errorf("%s: %w", did, Wrap(err))
}

// Page cuts a list that was read with one row more than limit, and returns the key of
// its last row if there is another page, else the zero key.
func Page[T, K any](list []T, limit int, key func(*T) K) (page []T, next K) {
	if len(list) <= limit {
		return list, next
	}
	return list[:limit], key(&list[limit-1])
}

// Pages returns all rows of a list that read returns a page at a time: those after a
// key, which is zero at the start, and the key of the next page, zero at the end. A row
// that is added or changed meanwhile is seen or not. An error is the last that it yields.
func Pages[T any, K comparable](read func(after K) (page []T, next K, err error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		var start, after K
		for {
			page, next, err := read(after)
			if err != nil {
				yield(none, err)
				return
			}
			for _, v := range page {
				if !yield(v, nil) {
					return
				}
			}
			if after = next; next == start {
				return
			}
		}
	}
}

// Query collects the conditions and arguments of a query whose text depends on what
// the caller wants. Texts are constants; values go in as arguments. The zero Query has
// no condition.
type Query struct {
	Args  []any
	conds []string
}

// Arg adds an argument and returns its place, such as $3.
func (q *Query) Arg(v any) string {
	q.Args = append(q.Args, v)
	return "$" + strconv.Itoa(len(q.Args))
}

// And adds a condition in which each ? means the next of values.
func (q *Query) And(cond string, values ...any) {
	for _, v := range values {
		cond = strings.Replace(cond, "?", q.Arg(v), 1)
	}
	q.conds = append(q.conds, cond)
}

// If adds a condition, as And does, if ok.
func (q *Query) If(ok bool, cond string, values ...any) {
	if ok {
		q.And(cond, values...)
	}
}

// Where returns the conditions, "WHERE ..." with a space before it; empty without any.
func (q *Query) Where() string {
	if len(q.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(q.conds, " AND ")
}

// Parts is a list that is read in parts, one for each value of a column. An index in which
// that column precedes the order of the list serves each part, and so one index serves
// the list of one value and the list of all: the database reads a page of each part.
type Parts[T ~string] struct {
	Columns string // what is read, with the columns of Order
	Table   string
	Column  string
	Values  []T
	Order   string // as behind ORDER BY
	Limit   int
}

// Text returns the query of the rows that meet the conditions of q, to which it adds the
// arguments.
func (p *Parts[T]) Text(q *Query) string {
	where, end := cmp.Or(q.Where(), " WHERE TRUE"), " ORDER BY "+p.Order+" LIMIT "+q.Arg(p.Limit)
	texts := make([]string, len(p.Values))
	for i, v := range p.Values {
		texts[i] = "SELECT " + p.Columns + " FROM " + p.Table + where + " AND " + p.Column + " = " + q.Arg(string(v)) + end
	}
	if len(texts) == 1 {
		return texts[0]
	}
	// PostgreSQL reads all of a part that has no LIMIT of its own.
	return "SELECT * FROM (" + strings.Join(texts, ") AS part UNION ALL SELECT * FROM (") + ") AS part" + end
}

// In adds values as arguments and returns their places for IN, such as ($1, $2). No
// value is (NULL), which nothing is in.
func In[T ~string](q *Query, values []T) string {
	if len(values) == 0 {
		return "(NULL)"
	}
	places := make([]string, len(values))
	for i, v := range values {
		places[i] = q.Arg(string(v))
	}
	return "(" + strings.Join(places, ", ") + ")"
}
