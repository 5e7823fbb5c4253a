package server

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

const (
	// maxHTTPPerAddress bounds the HTTP connections of one address; devices come
	// once a month, factories and checkers of certificates keep a few dozen open.
	maxHTTPPerAddress = 512
	// maxHTTP bounds those of one listener over all addresses.
	maxHTTP = 8192
)

// openGuard makes what all listeners share against floods.
func (s *Server) openGuard() {
	guard := &edge.Guard{
		Now:     s.opts.Now,
		Suspect: func(a netip.Addr) bool { return s.ledger.Check(a) != nil },
		Report:  func(t edge.TurnedAway) { s.events.Later(turnedAway(t)) },
		Log:     s.log,
	}
	s.doors = doors{guard: guard, intake: intake{Guard: guard}, connect: s.cfg.Limits.ConnectTimeout, log: s.log}
}

// turnedAway is the record of what an address was refused in the last minute.
func turnedAway(t edge.TurnedAway) countersign.Event {
	e := countersign.Event{
		Type: countersign.ConnectionsRefused, Actor: countersign.System, Via: t.Listener,
		Reason: "more connections than a listener takes; they were closed before any work",
		Data:   map[string]string{"count": strconv.Itoa(t.Count), "seconds": strconv.Itoa(int(t.For.Seconds()))},
	}
	if t.Address.IsValid() {
		e.Remote = t.Address.Addr().String()
		if !t.Address.IsSingleIP() {
			e.Remote = t.Address.String()
		}
	} else {
		e.Data["addresses"] = strconv.Itoa(t.Addresses)
	}
	var why []string
	for _, r := range slices.Sorted(maps.Keys(t.Reasons)) {
		why = append(why, string(r)+"="+strconv.Itoa(t.Reasons[r]))
	}
	e.Data["reasons"] = strings.Join(why, " ")
	return e
}

// floodMetrics collects what the guard did.
func floodMetrics(guard *edge.Guard) collector {
	turnedAway := prometheus.NewDesc("countersign_connections_turned_away_total",
		"Connections closed before any work, by listener and reason.", []string{"listener", "reason"}, nil)
	failed := prometheus.NewDesc("countersign_handshakes_failed_total",
		"TLS handshakes that failed, by listener and reason.", []string{"listener", "reason"}, nil)
	waiting := prometheus.NewDesc("countersign_handshakes_waiting", "TLS handshakes that wait for their turn.", nil, nil)
	return func(to chan<- prometheus.Metric) {
		for c, n := range guard.Counts() {
			to <- prometheus.MustNewConstMetric(turnedAway, prometheus.CounterValue, float64(n), c.Listener, string(c.Reason))
		}
		for c, n := range guard.Failures() {
			to <- prometheus.MustNewConstMetric(failed, prometheus.CounterValue, float64(n), c.Listener, string(c.Failure))
		}
		to <- prometheus.MustNewConstMetric(waiting, prometheus.GaugeValue, float64(guard.Waiting()))
	}
}
