package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/respond"
)

// openAuditor sets up what looks through the records.
func (s *Server) openAuditor(context.Context) error {
	s.auditor = &audit.Auditor{
		DB: s.db, Now: s.opts.Now, Log: s.log, Every: s.cfg.Audit.Every, Node: s.events.Node, Events: s.events, Verify: s.events.Verify,
		Sessions: s.index.Sessions, WeakKeys: s.ca.WeakKeys, SharedKeys: s.primes.Pairs, Handle: s.alerts.Take,
	}
	s.metrics.registry.MustRegister(audited{s.auditor})
	return nil
}

// auditRules are the audit checks as those who respond to findings know them. What
// matters little is noted and shown with the audit; the rest is an alert.
func auditRules() []respond.Rule {
	var rules []respond.Rule
	for _, c := range audit.Checks() {
		r := respond.Rule{Name: c.Name, Title: c.Title, Severity: c.Severity, Why: c.Why, Do: c.Fix, Default: []countersign.Mitigation{countersign.MitigateAlert}}
		if c.Severity == countersign.SeverityLow || c.Severity == countersign.SeverityInfo {
			r.Default = []countersign.Mitigation{countersign.MitigateNote}
		}
		rules = append(rules, r)
	}
	return rules
}

// scrapeTime bounds the reading of a few rows for a scrape.
const scrapeTime = 5 * time.Second

// audited tells a collector of Prometheus what the last audit came to, on every
// node the same.
type audited struct{ auditor *audit.Auditor }

func auditMetrics() (findings, ended *prometheus.Desc) {
	findings = prometheus.NewDesc("countersign_audit_findings", "Findings of the last audit that completed, by check, suppressed ones apart.", []string{"check"}, nil)
	ended = prometheus.NewDesc("countersign_audit_completed_timestamp_seconds", "When the last audit completed.", nil, nil)
	return findings, ended
}

// Describe is prometheus.Collector's.
func (a audited) Describe(ch chan<- *prometheus.Desc) {
	findings, ended := auditMetrics()
	ch <- findings
	ch <- ended
}

// Collect is prometheus.Collector's. While the database is away there is nothing to tell.
func (a audited) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	run, ok, err := a.auditor.LastCompleted(ctx)
	if err != nil || !ok {
		return
	}
	findings, ended := auditMetrics()
	ch <- prometheus.MustNewConstMetric(ended, prometheus.GaugeValue, float64(run.EndedAt.Unix()))
	for _, c := range run.Checks {
		ch <- prometheus.MustNewConstMetric(findings, prometheus.GaugeValue, float64(c.NonCompliant), c.Name)
	}
}
