package server

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/respond"
)

// openWatch sets up what finds abuse and what follows on it.
func (s *Server) openWatch(context.Context) error {
	s.alerts = &respond.Responder{
		DB: s.db, Registry: s.registry, Ledger: s.ledger, Events: s.events, Devices: s.desk, Now: s.opts.Now, Log: s.log,
		Sessions: s.index.Sessions, Rules: rulesOfFindings(), Channels: s.cfg.Notify, Host: s.cfg.Names[0], Observe: s.metrics.responded,
	}
	s.metrics.watchAlerts(s.alerts.OpenAlerts)
	s.watch = &detect.Watch{DB: s.db, Now: s.opts.Now, Log: s.log, Handle: s.alerts.Take, Usual: usual(s.registry)}
	s.events.Subscribe(func(countersign.Event) { s.watch.Wake() })
	return nil
}

// usual returns what a detector asks for what is usual in a fleet.
func usual(r *registry.Registry) func(context.Context, string) (countersign.Usual, error) {
	return func(ctx context.Context, fleet string) (countersign.Usual, error) {
		f, err := r.Fleet(ctx, r.DB, fleet)
		if countersign.CodeOf(err) == countersign.NotFound {
			return countersign.Usual{}, nil
		}
		return f.Rules.Usual, err
	}
}

// rulesOfFindings is the catalog of all that can be found.
func rulesOfFindings() (rules []countersign.Rule) {
	for _, c := range audit.Checks() {
		rules = append(rules, c.Rule)
	}
	for _, r := range detect.Rules() {
		rules = append(rules, r.Rule)
	}
	return rules
}

// alertMetrics are the metrics of findings and of what follows on them.
type alertMetrics struct {
	findings      *prometheus.CounterVec
	mitigations   *prometheus.CounterVec
	notifications *prometheus.CounterVec
}

func newAlertMetrics(r *prometheus.Registry) alertMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		r.MustRegister(c)
		return c
	}
	return alertMetrics{
		findings:      counter("countersign_findings_total", "Findings of detectors and audit checks, by rule and severity.", "rule", "severity"),
		mitigations:   counter("countersign_mitigations_total", "What the server did about alerts by itself, by how it ended.", "act", "outcome"),
		notifications: counter("countersign_notifications_total", "Attempts to tell a channel, by how they ended; dropped: given up or without room.", "channel", "outcome"),
	}
}

// responded counts; the labels take the names of rules, mitigations and channels alone.
func (m *metrics) responded(o respond.Outcome) {
	switch o.What {
	case "finding":
		m.alerts.findings.WithLabelValues(o.Name, o.Result).Inc()
	case "mitigation":
		m.alerts.mitigations.WithLabelValues(o.Name, o.Result).Inc()
	case "notification":
		m.alerts.notifications.WithLabelValues(o.Name, o.Result).Inc()
	}
}

// watchAlerts adds the number of open alerts, read at each scrape.
func (m *metrics) watchAlerts(open func(countersign.Severity) int64) {
	for _, severity := range countersign.Severities() {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "countersign_alerts", Help: "Alerts that are not closed, by severity.", ConstLabels: prometheus.Labels{"severity": string(severity)},
		}, func() float64 { return float64(open(severity)) }))
	}
}
