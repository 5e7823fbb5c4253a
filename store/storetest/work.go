package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/jackc/pgx/v5"
	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/countersign-iot/countersign/store"
)

// stepsOfARow is how many instructions of SQLite's virtual machine a row takes at least
// that is read and not used: the comparison and the step to the next one.
const stepsOfARow = 3

// RowsRead runs a statement on a database that no server uses, undoes it, and returns how
// many rows or entries of indexes the database looked at for it, as it counted them itself.
// PostgreSQL has the number; of SQLite it is the instructions that were run, divided by
// those of a row that is passed over, so a row that is returned counts for several.
func RowsRead(t testing.TB, url string, s store.Statement) int {
	t.Helper()
	read := postgresRead
	path, isSQLite := strings.CutPrefix(url, "sqlite:")
	if isSQLite {
		url, read = path, sqliteRead
	}
	n, err := read(t.Context(), url, s)
	if err != nil {
		t.Fatalf("count the rows of %s: %v", s.Text, err)
	}
	return n
}

// planNode is a node of EXPLAIN's JSON, as far as it reports the rows that were read.
type planNode struct {
	Plans   []planNode
	Rows    float64 `json:"Actual Rows"`
	Loops   float64 `json:"Actual Loops"`
	Removed float64 `json:"Rows Removed by Filter"`
	Recheck float64 `json:"Rows Removed by Index Recheck"`
}

// read returns the rows that the leaves below a node read.
func (n planNode) read() (rows float64) {
	for _, p := range n.Plans {
		rows += p.read()
	}
	if len(n.Plans) == 0 {
		rows = (n.Rows + n.Removed + n.Recheck) * n.Loops
	}
	return rows
}

func postgresRead(ctx context.Context, url string, s store.Statement) (rows int, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	var text []byte
	if err := tx.QueryRow(ctx, "EXPLAIN (ANALYZE, FORMAT JSON) "+s.Text, s.Args...).Scan(&text); err != nil {
		return 0, err
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal(text, &plans); err != nil || len(plans) == 0 {
		return 0, fmt.Errorf("%d plans: %w", len(plans), err)
	}
	return int(plans[0].Plan.read()), tx.Rollback(ctx)
}

// sqliteRead uses SQLite's own interface, because database/sql has no way to the counts of
// a statement.
func sqliteRead(_ context.Context, path string, s store.Statement) (int, error) {
	c := sqliteConn{tls: libc.NewTLS()}
	defer c.tls.Close()
	handle := c.pointer()
	if rc := sqlite3.Xsqlite3_open_v2(c.tls, c.text(path), handle, sqlite3.SQLITE_OPEN_READWRITE, 0); rc != sqlite3.SQLITE_OK {
		return 0, fmt.Errorf("open %s: SQLite's code %d", path, rc)
	}
	c.db = deref(handle)
	defer sqlite3.Xsqlite3_close_v2(c.tls, c.db)
	if _, err := c.run(store.Statement{Text: "BEGIN IMMEDIATE"}); err != nil {
		return 0, err
	}
	steps, err := c.run(s)
	if err != nil {
		return 0, err
	}
	_, err = c.run(store.Statement{Text: "ROLLBACK"})
	return steps / stepsOfARow, err
}

// sqliteConn is a connection by SQLite's own interface. What it allocates is small and
// stays until the process ends.
type sqliteConn struct {
	tls *libc.TLS
	db  uintptr
}

func (c *sqliteConn) pointer() uintptr {
	return libc.Xcalloc(c.tls, 1, libc.Tsize_t(unsafe.Sizeof(uintptr(0))))
}

func deref(p uintptr) uintptr { return **(**uintptr)(unsafe.Pointer(&p)) } //nolint:gosec // a pointer of C

func (c *sqliteConn) text(s string) uintptr {
	p, err := libc.CString(s)
	if err != nil {
		panic(err) // out of memory
	}
	return p
}

// run runs a statement to its end and returns how many instructions that took.
func (c *sqliteConn) run(s store.Statement) (steps int, err error) {
	handle := c.pointer()
	if rc := sqlite3.Xsqlite3_prepare_v2(c.tls, c.db, c.text(s.Text), -1, handle, 0); rc != sqlite3.SQLITE_OK {
		return 0, fmt.Errorf("prepare: %s", libc.GoString(sqlite3.Xsqlite3_errmsg(c.tls, c.db)))
	}
	stmt := deref(handle)
	defer sqlite3.Xsqlite3_finalize(c.tls, stmt)
	for i := int32(1); i <= sqlite3.Xsqlite3_bind_parameter_count(c.tls, stmt); i++ {
		n := int(i)
		if name := libc.GoString(sqlite3.Xsqlite3_bind_parameter_name(c.tls, stmt, i)); name != "" {
			if n, err = strconv.Atoi(name[1:]); err != nil {
				return 0, err
			}
		}
		if err := c.bind(stmt, i, s.Args[n-1]); err != nil {
			return 0, err
		}
	}
	for {
		switch rc := sqlite3.Xsqlite3_step(c.tls, stmt); rc {
		case sqlite3.SQLITE_ROW:
		case sqlite3.SQLITE_DONE:
			return int(sqlite3.Xsqlite3_stmt_status(c.tls, stmt, sqlite3.SQLITE_STMTSTATUS_VM_STEP, 0)), nil
		default:
			return 0, fmt.Errorf("step: %s", libc.GoString(sqlite3.Xsqlite3_errmsg(c.tls, c.db)))
		}
	}
}

func (c *sqliteConn) bind(stmt uintptr, i int32, v any) error {
	rc := int32(sqlite3.SQLITE_OK)
	switch v := v.(type) {
	case nil:
	case int64:
		rc = sqlite3.Xsqlite3_bind_int64(c.tls, stmt, i, v)
	case int:
		rc = sqlite3.Xsqlite3_bind_int64(c.tls, stmt, i, int64(v))
	case bool:
		if v {
			rc = sqlite3.Xsqlite3_bind_int64(c.tls, stmt, i, 1)
		} else {
			rc = sqlite3.Xsqlite3_bind_int64(c.tls, stmt, i, 0)
		}
	case []byte:
		rc = sqlite3.Xsqlite3_bind_blob(c.tls, stmt, i, c.text(string(v)), int32(len(v)), 0) //nolint:gosec // a test's value
	default:
		s := fmt.Sprint(v)                                                           // a string, or a type of one
		rc = sqlite3.Xsqlite3_bind_text(c.tls, stmt, i, c.text(s), int32(len(s)), 0) //nolint:gosec // a test's value
	}
	if rc != sqlite3.SQLITE_OK {
		return fmt.Errorf("bind %v: SQLite's code %d", v, rc)
	}
	return nil
}
