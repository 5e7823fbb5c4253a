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
		DB: s.db, Registry: s.registry, Ledger: s.ledger, Events: s.events, Devices: s.authority, Now: s.opts.Now, Log: s.log,
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

// watchAlerts adds the number of open alerts, read at each scrape.
func (m *metrics) watchAlerts(open func(countersign.Severity) int64) {
	for _, severity := range countersign.Severities() {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "countersign_alerts", Help: "Alerts that are not closed, by severity.", ConstLabels: prometheus.Labels{"severity": string(severity)},
		}, func() float64 { return float64(open(severity)) }))
	}
}
