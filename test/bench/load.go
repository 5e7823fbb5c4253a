package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// sample is what one round found out about one thing. What does not apply is 0.
type sample struct {
	name  string
	ops   int
	wall  time.Duration // the answers
	cpu   time.Duration // of the server, with what it did after the answers
	p50   time.Duration
	p99   time.Duration
	worst time.Duration // the slowest, where that is told
	alone bool          // one after the other: per second says nothing
	bytes float64       // for memory: per session, or in all
}

// drive does op n times on workers goroutines and gives the sorted times that
// each took. The first error ends it: figures of a server that refuses mean
// nothing.
func drive(ctx context.Context, workers, n int, op func(ctx context.Context, worker, i int) error) ([]time.Duration, time.Duration, error) {
	took := make([]time.Duration, n)
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	begin := now()
	for w := range workers {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				t := now()
				if err := op(ctx, w, i); err != nil {
					return err
				}
				took[i] = time.Since(t)
			}
		})
	}
	err := group.Wait()
	wall := time.Since(begin)
	slices.Sort(took)
	return took, wall, err
}

// load drives the process and reads its CPU around it.
func (p *process) load(ctx context.Context, name string, workers, n int, op func(ctx context.Context, worker, i int) error) (sample, error) {
	before, err := p.idle(ctx)
	if err != nil {
		return sample{}, err
	}
	took, wall, err := drive(ctx, workers, n, op)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", name, err)
	}
	after, err := p.idle(ctx)
	if err != nil {
		return sample{}, err
	}
	return sample{name: name, ops: n, wall: wall, cpu: after - before, p50: percentile(took, 50), p99: percentile(took, 99)}, nil
}

// percentile gives the smallest of the sorted values that at least p percent of
// them do not exceed; 0 if there are none.
func percentile[T any](sorted []T, p float64) T {
	if len(sorted) == 0 {
		return *new(T)
	}
	return sorted[max(int(math.Ceil(p/100*float64(len(sorted))))-1, 0)]
}

// spread is a median with the least and the greatest value.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return spread{}
	}
	mid := len(sorted) / 2
	median := sorted[mid]
	if len(sorted)%2 == 0 {
		median = (sorted[mid-1] + sorted[mid]) / 2
	}
	return spread{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1]}
}
