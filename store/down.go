package store

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"syscall"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/jackc/pgx/v5/pgconn"
)

// The SQLSTATE codes of a PostgreSQL that refuses a session.
const (
	pgWrongPassword = "28P01"
	pgNotAuthorized = "28000"
	pgNoDatabase    = "3D000"
	pgTooMany       = "53300"
	pgStarting      = "57P03"
)

// downBecause words why a database cannot be used, and what to look at. It names no
// address, user or path: those are in the log's cause.
func downBecause(err error) (what, next string) {
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_NOTADB:
		return "the file is not a SQLite database", "name the right file, or restore it from a backup"
	case sqlite3.SQLITE_CORRUPT:
		return "the file is damaged", "restore it from a backup; sqlite3 FILE 'PRAGMA integrity_check' shows what is wrong"
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return "the file cannot be opened", "look whether its folder exists, and whether the server's user may write there"
	case sqlite3.SQLITE_READONLY:
		return "the file is read-only", "let the server's user write to the file and its folder"
	case sqlite3.SQLITE_IOERR:
		return "its disk fails", "look at the disk and the kernel's log"
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return "another program has locked the file", "end the program that has it open"
	}
	switch pgCode(err) {
	case pgWrongPassword, pgNotAuthorized:
		return "PostgreSQL refuses the user or its password", "correct the user and password of the database's URL, or pg_hba.conf"
	case pgNoDatabase:
		return "PostgreSQL has no database of that name", "create it, or correct the name in the database's URL"
	case pgTooMany:
		return "PostgreSQL has too many connections", "raise max_connections: each node holds up to 20"
	case pgStarting:
		return "PostgreSQL is starting or stopping", "wait, then try again"
	}
	return netDownBecause(err)
}

// netDownBecause words what the network said.
func netDownBecause(err error) (what, next string) {
	const server = "look whether PostgreSQL runs and whether the database's URL names it"
	var name *net.DNSError
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "permission denied", "look at the owner and mode of the database's file or socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused", server
	case errors.As(err, &name):
		return "the name of its server cannot be resolved", "correct the host in the database's URL"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "its server does not answer", server
	case errors.Is(err, errClosed):
		return "this server is stopping", "ask another node, or wait until it runs again"
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return "its server cannot be reached", server
	}
	return "the connection to it was lost", "look in the server's log and at the database's server"
}
