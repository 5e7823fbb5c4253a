package main

import (
	"context"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// sample is what one round found out about one thing. What does not apply is 0.
type sample struct {
	name   string
	ops    int
	wall   time.Duration // the answers
	cpu    time.Duration // of the server, with what it did after the answers
	p50    time.Duration
	p99    time.Duration
	worst  time.Duration // the slowest, where the report has it
	second time.Duration // p99 of the worst second
	alone  bool          // one after the other: per second means nothing
	bytes  float64       // for memory: per session, or in all
}

// timed is the sample of operations by how long each took.
func timed(name string, took []time.Duration) sample {
	slices.Sort(took)
	return sample{name: name, ops: len(took), p50: percentile(took, 50), p99: percentile(took, 99)}
}

// alone is that of operations of which one was done after the other.
func alone(name string, took []time.Duration) sample {
	s := timed(name, took)
	s.alone, s.worst = true, percentile(took, 100)
	return s
}

func perSession(name string, empty, full int64, n int) sample {
	return sample{name: name, ops: n, bytes: float64(full-empty) / float64(n)}
}

// ordered returns what is measured in turn in the order of a round: every second one goes
// the other way, so that none is always measured after the other.
func ordered[T any](round int, all []T) []T {
	all = slices.Clone(all)
	if round%2 == 1 {
		slices.Reverse(all)
	}
	return all
}

// asked is one operation.
type asked struct {
	At   time.Duration `json:"at"` // since the first began
	Took time.Duration `json:"took"`
}

// worstSecond returns the p99 of the second in which it is worst.
func worstSecond(all []asked) (worst time.Duration) {
	seconds := map[int][]time.Duration{}
	for _, one := range all {
		second := int(one.At / time.Second)
		seconds[second] = append(seconds[second], one.Took)
	}
	for _, took := range seconds {
		worst = max(worst, timed("", took).p99)
	}
	return worst
}

// operation is what is measured, done once by one of the workers.
type operation func(ctx context.Context, worker, i int) error

// drive does op n times on workers goroutines and returns the times that each
// took. The first error ends it: figures of a server that refuses mean nothing.
func drive(ctx context.Context, workers, n int, op operation) ([]time.Duration, error) {
	took := make([]time.Duration, n)
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
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
	return took, group.Wait()
}

// percentile returns the smallest of the sorted values that at least p percent of
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

// now reads the clock.
func now() time.Time {
	return time.Now() //nolint:forbidigo // a benchmark measures time, and no caller has a clock for it
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
