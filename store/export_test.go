package store

import "io/fs"

// WithMigrations replaces the embedded migrations.
func WithMigrations(o Options, files fs.FS) Options {
	o.migrations = files
	return o
}

// DownBecause words why a database cannot be used.
var DownBecause = downBecause

// Positional is the text that SQLite prepares for q.
func Positional(q string) string { return positional(q) }
