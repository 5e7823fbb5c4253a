package store

import (
	"container/list"
	"context"
	"database/sql"
	"strconv"
	"strings"
	"sync"
)

// stmtMax bounds a cache of prepared statements. The program has some 200
// constant texts; the rest is for texts that a search builds.
const stmtMax = 512

// cached is a runner that keeps its statements prepared: SQLite spends more time
// parsing a point read than running it. (pgx does the same by itself.) The least
// recently used one makes room.
type cached struct {
	src preparer

	mu    sync.Mutex
	order *list.List // of *prepared, most recently used first
	byQ   map[string]*list.Element
}

type prepared struct {
	q       string
	stmt    *sql.Stmt
	users   int // calls under way, owned by cached.mu
	evicted bool
}

// preparer is a *sql.DB, whose statements follow its connections, or one *sql.Conn.
type preparer interface {
	PrepareContext(ctx context.Context, q string) (*sql.Stmt, error)
}

func newCached(src preparer) *cached {
	return &cached{src: src, order: list.New(), byQ: map[string]*list.Element{}}
}

// acquire returns a statement that stays open until release.
func (c *cached) acquire(ctx context.Context, q string) (*prepared, error) {
	if p := c.lookup(q); p != nil {
		return p, nil
	}
	stmt, err := c.src.PrepareContext(ctx, positional(q))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &prepared{q: q, stmt: stmt, users: 1}
	if c.byQ[q] != nil { // another goroutine was faster; ours serves once
		p.evicted = true
		return p, nil
	}
	c.byQ[q] = c.order.PushFront(p)
	if c.order.Len() > stmtMax {
		c.evict(c.order.Back())
	}
	return p, nil
}

// positional writes $1, $2, ... as ?, if each is used once and in order. The driver asks
// SQLite for the name of each parameter that it binds, and SQLite searches a list for it:
// an INSERT of 700 values spent more time on that than on its rows. A ? has no name.
func positional(q string) string {
	var out strings.Builder
	quoted, from := false, 0
	for i, n := 0, 1; i < len(q); i++ {
		switch {
		case q[i] == '\'':
			quoted = !quoted
		case quoted || q[i] != '$' || i+1 == len(q) || !isDigit(q[i+1]):
		default:
			end := i + 1
			for end < len(q) && isDigit(q[end]) {
				end++
			}
			if q[i+1:end] != strconv.Itoa(n) {
				return q
			}
			out.WriteString(q[from:i])
			out.WriteByte('?')
			n++
			from, i = end, end-1
		}
	}
	out.WriteString(q[from:])
	return out.String()
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func (c *cached) lookup(q string) *prepared {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byQ[q]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	p := e.Value.(*prepared)
	p.users++
	return p
}

// evict forgets a statement; the last user closes it. The caller holds mu.
func (c *cached) evict(e *list.Element) {
	p := c.order.Remove(e).(*prepared)
	delete(c.byQ, p.q)
	p.evicted = true
	if p.users == 0 {
		_ = p.stmt.Close()
	}
}

func (c *cached) release(p *prepared) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.users--
	if p.evicted && p.users == 0 {
		_ = p.stmt.Close() // database/sql closes it once its open rows are closed
	}
}

func (c *cached) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.evict(c.order.Back())
	}
}

// ExecContext runs a statement.
func (c *cached) ExecContext(ctx context.Context, q string, args ...any) (sql.Result, error) {
	p, err := c.acquire(ctx, q)
	if err != nil {
		return nil, err
	}
	defer c.release(p)
	return p.stmt.ExecContext(ctx, args...)
}

// QueryContext reads rows.
func (c *cached) QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	p, err := c.acquire(ctx, q)
	if err != nil {
		return nil, err
	}
	defer c.release(p)
	return p.stmt.QueryContext(ctx, args...) //nolint:sqlclosecheck // the caller closes what it asked for
}

// QueryRowContext reads one row.
func (c *cached) QueryRowContext(ctx context.Context, q string, args ...any) *sql.Row {
	p, err := c.acquire(ctx, q)
	if err != nil {
		return failedRow(ctx, err)
	}
	defer c.release(p)
	return p.stmt.QueryRowContext(ctx, args...)
}
