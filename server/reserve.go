package server

import (
	"context"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// reserveChanged takes the state of the reserve from the database. It must not block:
// only the latest state matters.
func (s *Server) reserveChanged(r store.Reserve) {
	for {
		select {
		case s.reserve <- r:
			return
		default:
		}
		select {
		case <-s.reserve:
		default:
		}
	}
}

// watchReserve puts on record when the reserve of the database is used and when it is
// whole again. The event may use the reserve itself: an alert must not wait for the
// space that it is about.
func (s *Server) watchReserve(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-s.reserve:
			e := countersign.Event{
				Type: countersign.ReserveUsed, Actor: countersign.System, Reason: "the database has no space left: only revocations and suspensions are recorded, from the reserve",
				Data: map[string]string{"node": s.events.Node, "size": strconv.FormatInt(r.Size, 10), "left": strconv.FormatInt(r.Left, 10)},
			}
			if !r.InUse {
				e.Type, e.Reason = countersign.ReserveRefilled, "the database has space again"
			}
			err := s.db.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error { return s.events.Append(ctx, tx, e) })
			if err != nil && ctx.Err() == nil {
				s.log.ErrorContext(ctx, "use of the reserve not recorded", "in_use", r.InUse, "error", err)
			}
		}
	}
}

// watchSpace adds what a collector of Prometheus reads of the reserve.
func (m *metrics) watchSpace(reserve func() store.Reserve) {
	gauge := func(name, help string, f func(store.Reserve) float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return f(reserve()) }))
	}
	gauge("countersign_reserve_bytes", "What is left of the space that only revocations may use; 0 on PostgreSQL.", func(r store.Reserve) float64 { return float64(r.Left) })
	gauge("countersign_reserve_in_use", "1 while the database has no space but the reserve.", func(r store.Reserve) float64 {
		if r.InUse {
			return 1
		}
		return 0
	})
}
