package store_test

import (
	"testing"

	"github.com/countersign-iot/countersign/store"
)

func TestPositionalKeepsWhatEachParameterMeans(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ q, want string }{
		{`SELECT 1`, `SELECT 1`},
		{`INSERT INTO a (b, c) VALUES ($1, $2), ($3, $4)`, `INSERT INTO a (b, c) VALUES (?, ?), (?, ?)`},
		{
			`SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 LIMIT $12`,
			`SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? LIMIT ?`,
		},
		{`SELECT a FROM b WHERE c = $1 OR d = $1`, `SELECT a FROM b WHERE c = $1 OR d = $1`},
		{`SELECT a FROM b WHERE c = $2 OR d = $1`, `SELECT a FROM b WHERE c = $2 OR d = $1`},
		{`SELECT json(a, '$.b') FROM c WHERE d = $1`, `SELECT json(a, '$.b') FROM c WHERE d = ?`},
		{`SELECT '$1', $1`, `SELECT '$1', ?`},
		{`SELECT 'it''s $1', $1`, `SELECT 'it''s $1', ?`},
	} {
		if got := store.Positional(tt.q); got != tt.want {
			t.Errorf("positional(%s): got %s, want %s", tt.q, got, tt.want)
		}
	}
}
