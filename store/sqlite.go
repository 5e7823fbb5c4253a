package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	countersign "github.com/countersign-iot/countersign"
)

const (
	// readConns bounds the readers. A read uses one core while it runs; more
	// connections than cores only hide slow ones from quick ones.
	readConns = 8
	// busyTimeout is how long a statement waits for a foreign process, such as a
	// backup through sqlite3, to release its lock.
	busyTimeout = "5000"
	// walKeep is the size to which a checkpointed WAL file is cut back.
	walKeep = "67108864"
	// pageSize is SQLite's default; MaxBytes is counted in pages.
	pageSize = 4096
	// writeCache is the writer's page cache in KiB, negative as SQLite wants it. Its
	// default of 2 MB cannot hold the leaves of random keys that a batch touches.
	writeCache = "-16384"
)

// openSQLite opens the file for this process alone: readers in a pool, and one
// connection that writes.
func openSQLite(ctx context.Context, o Options, path string) (_ *DB, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); o.Existing && (errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0) {
		return nil, ErrEmpty
	}
	release, err := claim(path)
	if err != nil {
		return nil, err
	}
	cleanup := closers{release}
	defer func() {
		if err != nil {
			err = errors.Join(err, cleanup.close())
		}
	}()
	var spare *reserve
	if o.Reserve > 0 {
		spare = openReserve(o, path)
		cleanup = append(cleanup, spare.close)
	}
	writing := []string{
		"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "journal_size_limit(" + walKeep + ")", "cache_size(" + writeCache + ")",
		// The journal of a savepoint, else a temporary file for each write.
		"temp_store(MEMORY)",
	}
	if o.MaxBytes > 0 {
		writing = append(writing, "max_page_count("+strconv.FormatInt(max(1, o.MaxBytes/pageSize), 10)+")")
	}
	writer, err := sql.Open("sqlite", sqliteDSN(path, writing...))
	if err != nil {
		return nil, err
	}
	cleanup = append(cleanup, writer.Close)
	w, err := startWriter(ctx, writer, o, spare)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, dialect{}.wrap(err))
	}
	cleanup = append(cleanup, w.close)
	readers, err := sql.Open("sqlite", sqliteDSN(path, "query_only(1)", "foreign_keys(1)"))
	if err != nil {
		return nil, err
	}
	readers.SetMaxOpenConns(readConns)
	readers.SetMaxIdleConns(readConns)
	cleanup = append(cleanup, readers.Close)
	reads := newCached(readers)
	cleanup = append(cleanup, func() error { reads.close(); return nil })
	return &DB{opts: o, dialect: sqliteDialect(), reads: reads, write: w.write, listen: listenAlone, lost: never, close: cleanup.close, reserve: spare}, nil
}

func sqliteDSN(path string, pragmas ...string) string {
	q := url.Values{"_pragma": append([]string{"busy_timeout(" + busyTimeout + ")"}, pragmas...)}
	u := url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}
	return u.String()
}

// closers run last in, first out.
type closers []func() error

func (c closers) close() error {
	var errs []error
	for _, closer := range slices.Backward(c) {
		errs = append(errs, closer())
	}
	return errors.Join(errs...)
}

// claim takes the database file for this process: two processes with a cache of
// decisions each would not see each other's revocations. The lock is on a file
// beside it, since closing any descriptor of the database itself would drop
// SQLite's own POSIX locks. The kernel frees it when the process dies.
func claim(path string) (release func() error, err error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := holderOf(lock)
		_ = lock.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("couldn't lock %s.lock: %w", path, err)
		}
		return nil, countersign.Errorf(countersign.Conflict, "the database %s is in use by %s", path, holder).
			WithNext("stop " + holder + ", or name another data folder").WithCause(err)
	}
	// The number of the process is a courtesy, which a full disk may refuse.
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid()))); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return nil, errors.Join(fmt.Errorf("couldn't write %s.lock: %w", path, err), lock.Close())
	}
	if err := private(path); err != nil {
		return nil, errors.Join(fmt.Errorf("couldn't prepare %s: %w", path, err), lock.Close())
	}
	return lock.Close, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// holderOf names the process that holds the lock, as far as it wrote its id.
func holderOf(lock *os.File) string {
	const pidMax = 20 // digits of the largest int64
	buf := make([]byte, pidMax)
	n, _ := lock.ReadAt(buf, 0) // a short read is the usual case
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return "another process"
	}
	return "process " + strconv.Itoa(pid)
}

// private creates the database for its owner alone; the WAL gets the same mode from SQLite.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the operator names the file
	if err != nil {
		return err
	}
	return f.Close()
}

// listenAlone is Listen where there is no other node.
func listenAlone(ctx context.Context, _ func(string), onState func(bool)) error {
	onState(true)
	<-ctx.Done()
	return nil
}
