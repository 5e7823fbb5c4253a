package store_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// BenchmarkWrite is an insert and an upsert in a durable transaction, from 64
// goroutines for each processor: what an enrollment under load costs.
func BenchmarkWrite(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchmarkWrite(b, storetest.Open(b)) })
	b.Run("postgres", func(b *testing.B) { benchmarkWrite(b, storetest.OpenURL(b, storetest.PostgresURL(b))) })
}

func benchmarkWrite(b *testing.B, db *store.DB) {
	table(b, db)
	var next atomic.Int64
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := next.Add(1)
			err := db.Write(b.Context(), func(ctx context.Context, tx *store.Tx) error {
				if _, err := tx.Exec(ctx, insert, strconv.FormatInt(i, 10), i); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `INSERT INTO counter (name, n) VALUES ($1, 1)
					ON CONFLICT (name) DO UPDATE SET n = counter.n + 1`, "shared"+strconv.FormatInt(i%64, 10))
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkReadRow is a point read by primary key.
func BenchmarkReadRow(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchmarkReadRow(b, storetest.Open(b)) })
	b.Run("postgres", func(b *testing.B) { benchmarkReadRow(b, storetest.OpenURL(b, storetest.PostgresURL(b))) })
}

func benchmarkReadRow(b *testing.B, db *store.DB) {
	table(b, db)
	run(b, db, insert, "a", 1)
	ctx, cancel := context.WithCancel(b.Context()) // as a request has it
	defer cancel()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var n int64
			if err := db.QueryRow(ctx, `SELECT n FROM counter WHERE name = $1`, "a").Scan(&n); err != nil {
				b.Fatal(err)
			}
		}
	})
}
