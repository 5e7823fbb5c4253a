package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign/audit"
)

// openAuditor sets up the audit of the records.
func (s *Server) openAuditor(context.Context) error {
	s.auditor = &audit.Auditor{
		DB: s.db, Now: s.opts.Now, Log: s.log, Every: s.cfg.Audit.Every, Node: s.events.Node,
		CA: s.ca, Registry: s.registry, Policies: s.authority.Access.Policies, Operators: s.gate.Accounts, Events: s.events,
		WeakKeys: s.ca.WeakKeys, Verify: s.events.Verify, Sessions: s.index.Sessions, SharedKeys: s.primes.Pairs, Handle: s.alerts.Take,
	}
	s.metrics.registry.MustRegister(auditMetrics(s.auditor))
	return nil
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
