package store

import "io/fs"

// WithMigrations replaces the embedded migrations.
func WithMigrations(o Options, files fs.FS) Options {
	o.migrations = files
	return o
}

// DownBecause words why a database cannot be used.
var DownBecause = downBecause
