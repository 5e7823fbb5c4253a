package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/respond"
)

// openAuditor sets up the audit of the records.
func (s *Server) openAuditor(context.Context) error {
	s.auditor = &audit.Auditor{
		DB: s.db, Now: s.opts.Now, Log: s.log, Every: s.cfg.Audit.Every, Node: s.events.Node, Events: s.events, Verify: s.events.Verify,
		Sessions: s.index.Sessions, WeakKeys: s.ca.WeakKeys, SharedKeys: s.primes.Pairs, Handle: s.alerts.Take,
	}
	s.metrics.registry.MustRegister(auditMetrics(s.auditor))
	return nil
}

// auditRules returns the audit checks as rules of response. A finding of low severity is
// noted and shown with the audit; the others are alerts.
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

// auditMetrics collects what the last audit that completed found, on every node the
// same, and nothing while the database cannot be reached.
func auditMetrics(auditor *audit.Auditor) collector {
	findings := prometheus.NewDesc("countersign_audit_findings", "Findings of the last audit that completed, by check, suppressed ones apart.", []string{"check"}, nil)
	ended := prometheus.NewDesc("countersign_audit_completed_timestamp_seconds", "When the last audit completed.", nil, nil)
	return func(ch chan<- prometheus.Metric) {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
		defer cancel()
		run, ok, err := auditor.LastCompleted(ctx)
		if err != nil || !ok {
			return
		}
		ch <- prometheus.MustNewConstMetric(ended, prometheus.GaugeValue, float64(run.EndedAt.Unix()))
		for _, c := range run.Checks {
			ch <- prometheus.MustNewConstMetric(findings, prometheus.GaugeValue, float64(c.NonCompliant), c.Name)
		}
	}
}
