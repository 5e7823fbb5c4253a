package store

import (
	"context"
	"database/sql"
)

// Statement is one SQL statement as it is run.
type Statement struct {
	Text string
	Args []any
	// InWrite reports whether it is part of a [DB.Write], for which others wait.
	InWrite bool
}

// observed is a runner whose statements are shown to a function before they run.
type observed struct {
	runner
	inWrite bool
	show    func(Statement)
}

// observe returns r, as Options.OnStatement sees it.
func (o *Options) observe(r runner, inWrite bool) runner {
	if o.OnStatement == nil {
		return r
	}
	return observed{r, inWrite, o.OnStatement}
}

// ExecContext runs a statement.
func (o observed) ExecContext(ctx context.Context, q string, args ...any) (sql.Result, error) {
	o.show(Statement{q, args, o.inWrite})
	return o.runner.ExecContext(ctx, q, args...)
}

// QueryContext reads rows.
func (o observed) QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	o.show(Statement{q, args, o.inWrite})
	return o.runner.QueryContext(ctx, q, args...)
}

// QueryRowContext reads one row.
func (o observed) QueryRowContext(ctx context.Context, q string, args ...any) *sql.Row {
	o.show(Statement{q, args, o.inWrite})
	return o.runner.QueryRowContext(ctx, q, args...)
}
