package server

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/respond"
)

// metrics are what a collector of Prometheus reads; docs/metrics.md lists them.
// Labels take a bounded set of values: never an id or an address.
type metrics struct {
	registry *prometheus.Registry
	outcomes *prometheus.CounterVec
	events   *prometheus.CounterVec
	// responses are those of findings and of what follows on them, by what a
	// respond.Outcome is about.
	responses map[string]*prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.outcomes = m.counters("countersign_requests_total", "Enrollments, renewals, recoveries and connections by how they ended; code granted is a yes.", "act", "method", "door", "code")
	m.events = m.counters("countersign_events_total", "Events of this node by type and severity.", "type", "severity")
	m.responses = map[string]*prometheus.CounterVec{
		"finding":      m.counters("countersign_findings_total", "Findings of detectors and audit checks, by rule and severity.", "rule", "severity"),
		"mitigation":   m.counters("countersign_mitigations_total", "What the server did about alerts by itself, by how it ended.", "act", "outcome"),
		"notification": m.counters("countersign_notifications_total", "Attempts to notify a channel, by how they ended; dropped: given up or without room.", "channel", "outcome"),
	}
	return m
}

// counters adds counters by labels.
func (m *metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

// times adds histograms of seconds by hook.
func (m *metrics) times(name, help string, buckets ...float64) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"hook"})
	m.registry.MustRegister(h)
	return h
}

// gauge adds a number that is read at each scrape.
func (m *metrics) gauge(name, help string, f func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
}

// counting returns a function that adds a counter of what stats returns, read at each scrape.
func counting[S any](m *metrics, stats func() S) func(name, help string, f func(S) uint64) {
	return func(name, help string, f func(S) uint64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(f(stats())) }))
	}
}

func (m *metrics) observe(o ra.Outcome) {
	code := string(o.Code)
	if code == "" {
		code = "granted"
	}
	m.outcomes.WithLabelValues(o.Act, string(o.Method), o.Door, code).Inc()
}

func (m *metrics) recorded(e countersign.Event) {
	m.events.WithLabelValues(string(e.Type), string(e.Type.Kind().Level)).Inc()
}

// responded counts; the labels take the names of rules, mitigations and channels alone.
func (m *metrics) responded(o respond.Outcome) {
	if c := m.responses[o.What]; c != nil {
		c.WithLabelValues(o.Name, o.Result).Inc()
	}
}

// collector is a function as a prometheus.Collector. It describes nothing beforehand:
// what it collects depends on what there is to read at the scrape.
type collector func(chan<- prometheus.Metric)

// Describe implements prometheus.Collector.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) { c(ch) }

// oneIf returns 1 for true.
func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// watch adds what is read of the server at each scrape.
func (m *metrics) watch(s *Server) {
	m.registry.MustRegister(floodMetrics(s.doors.guard))
	m.gauge("countersign_sessions", "Live sessions on this node.", func() float64 { return float64(s.index.Len()) })
	m.gauge("countersign_database_up", "1 while this node reaches its database.", func() float64 {
		_, lost := s.db.Lost()
		return oneIf(!lost)
	})
	m.gauge("countersign_holds", "Emergency holds in force on this node: acts that could not be recorded.", func() float64 { return float64(s.authority.Holds.Len()) })
	m.gauge("countersign_reserve_bytes", "What is left of the space that only revocations may use; 0 on PostgreSQL.", func() float64 { return float64(s.db.Reserve().Left) })
	m.gauge("countersign_reserve_in_use", "1 while the database has no space but the reserve.", func() float64 { return oneIf(s.db.Reserve().InUse) })
	if s.gateway != nil {
		m.watchGateway(s.gateway)
	}
	if s.broker != nil {
		m.watchBroker(s.broker)
	}
}

// watchGateway adds what the MQTT gateway counts.
func (m *metrics) watchGateway(gateway *mqtt.Server) {
	counter := counting(m, gateway.Stats)
	counter("countersign_websocket_refused_total", "Requests to the WebSocket listener that opened none.", func(s mqtt.Stats) uint64 { return s.NoUpgrade })
	counter("countersign_mqtt_connects_total", "Well-formed CONNECT packets.", func(s mqtt.Stats) uint64 { return s.Connects })
	counter("countersign_mqtt_refused_total", "Of those, refused.", func(s mqtt.Stats) uint64 { return s.Refused })
	counter("countersign_mqtt_published_total", "Messages passed on to the engine.", func(s mqtt.Stats) uint64 { return s.Published })
	counter("countersign_mqtt_delivered_total", "Messages passed on to devices.", func(s mqtt.Stats) uint64 { return s.Delivered })
	counter("countersign_mqtt_denied_total", "Acts that permissions refused.", func(s mqtt.Stats) uint64 { return s.Denied })
	counter("countersign_mqtt_malformed_total", "Connections ended for a breach of the protocol.", func(s mqtt.Stats) uint64 { return s.Malformed })
	counter("countersign_mqtt_over_budget_total", "What was refused or ended because a device had more than its budget.", func(s mqtt.Stats) uint64 { return s.OverBudget })
	counter("countersign_mqtt_slowed_total", "Times that a device was read more slowly because it sends more than its budget.", func(s mqtt.Stats) uint64 { return s.Slowed })
	counter("countersign_mqtt_unread_dropped_total", "Messages of QoS 0 dropped because their client does not read.", func(s mqtt.Stats) uint64 { return s.Unread })
	counter("countersign_mqtt_turned_away_total", "Connections closed at once, over a limit.", func(s mqtt.Stats) uint64 { return s.TurnedAway })
	counter("countersign_mqtt_handshake_failed_total", "TLS handshakes that failed.", func(s mqtt.Stats) uint64 { return s.HandshakeFailed })
}

// watchBroker adds what the broker core counts and stores.
func (m *metrics) watchBroker(b *broker.Broker) {
	m.registry.MustRegister(storedMetrics(b))
	counter := counting(m, b.Stats)
	counter("countersign_mqtt_stored_dropped_total", "Stored sessions dropped because their device had more than it may.", func(s broker.Stats) uint64 { return s.SessionsDropped })
	counter("countersign_mqtt_queue_dropped_total", "Messages of QoS 1 and 2 that a full queue or store did not take.", func(s broker.Stats) uint64 { return s.Dropped })
	counter("countersign_mqtt_expired_total", "Messages that expired before they were delivered.", func(s broker.Stats) uint64 { return s.Expired })
	counter("countersign_mqtt_commit_failed_total", "Transactions of the message engine that the database did not take.", func(s broker.Stats) uint64 { return s.CommitFailed })
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}
