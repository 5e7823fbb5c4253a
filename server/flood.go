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

var (
	turnedAwayDesc = prometheus.NewDesc("countersign_connections_turned_away_total",
		"Connections closed before any work, by listener and reason.", []string{"listener", "reason"}, nil)
	failedDesc = prometheus.NewDesc("countersign_handshakes_failed_total",
		"TLS handshakes that failed, by listener and reason.", []string{"listener", "reason"}, nil)
	waitingDesc = prometheus.NewDesc("countersign_handshakes_waiting", "TLS handshakes that wait for their turn.", nil, nil)
)

// refused shows a collector of Prometheus what the guard did.
type refused struct{ guard *edge.Guard }

// Describe serves prometheus.Collector.
func (refused) Describe(to chan<- *prometheus.Desc) {
	to <- turnedAwayDesc
	to <- failedDesc
	to <- waitingDesc
}

// Collect serves prometheus.Collector.
func (r refused) Collect(to chan<- prometheus.Metric) {
	for c, n := range r.guard.Counts() {
		to <- prometheus.MustNewConstMetric(turnedAwayDesc, prometheus.CounterValue, float64(n), c.Listener, string(c.Reason))
	}
	for c, n := range r.guard.Failures() {
		to <- prometheus.MustNewConstMetric(failedDesc, prometheus.CounterValue, float64(n), c.Listener, string(c.Failure))
	}
	to <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(r.guard.Waiting()))
}
