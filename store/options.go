package store

import (
	"io/fs"
	"log/slog"
	"time"
)

// Options say which database to open.
type Options struct {
	// URL is "sqlite:/path/file.db" or "postgres://user@host/name".
	URL string
	// Now is the clock. It is required.
	Now func() time.Time
	// Log receives what is returned to no caller: reconnects, panics. Nil discards it.
	Log *slog.Logger
	// MaxBytes bounds the SQLite file; a write beyond it is refused as
	// Unavailable. 0 is no bound. PostgreSQL ignores it.
	MaxBytes int64
	// Existing refuses a database without our tables, with ErrEmpty, and leaves it as it
	// is: a SQLite file that is not there is not made.
	Existing bool
	// Reserve is how many octets beside the SQLite file, and beyond MaxBytes, are kept
	// for emergency writes; see [Emergency]. 0 is none. PostgreSQL ignores it.
	Reserve int64
	// OnReserve is called when the use of the reserve began or ended. It must not block
	// nor use the database. Nil: nothing is. A function, because events and metrics belong
	// to packages above.
	OnReserve func(Reserve)
	// OnStatement is called with each statement of a read or a write before it runs, so
	// that a test can hold what a server asks of its database against the rows that are
	// read for it. It must not block. Nil: nothing is. A function, because what is done with
	// a statement belongs to the test.
	OnStatement func(Statement)

	migrations fs.FS // tests bring their own; nil is the embedded ones
}

// Reserve is the state of the space that only emergency writes may use.
type Reserve struct {
	Size int64 // octets when it is whole; 0: the database has none
	Left int64 // octets of the file that are not yet released
	// InUse is set while some of it is used. Until the space is back, writes that are
	// no emergency are refused, so that they do not take what is left.
	InUse bool
}

// Missing reports whether there should be a reserve and none could be made, because
// the disk had too little space from the start.
func (r Reserve) Missing() bool { return r.Size > 0 && r.Left == 0 && !r.InUse }
