package server

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign"
)

// storedMetrics collects what devices have in the message store, and nothing where that
// cannot be read.
func storedMetrics(messages countersign.MessageStore) collector {
	return func(ch chan<- prometheus.Metric) {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
		defer cancel()
		sum, err := messages.TotalUsage(ctx)
		if err != nil {
			return
		}
		first, err := messages.Usage(ctx, countersign.UsageFilter{Limit: 1})
		if err != nil {
			return
		}
		most := int64(0)
		if len(first) > 0 {
			most = first[0].Octets()
		}
		for _, g := range []struct {
			name, help string
			value      int64
		}{
			{"retained_messages", "Retained messages of devices.", int64(sum.Retained)},
			{"retained_bytes", "Retained messages of devices, with their topics.", sum.RetainedOctets},
			{"queued_messages", "Messages that wait for devices.", int64(sum.Queued)},
			{"queued_bytes", "Those in octets.", sum.QueuedOctets},
			{"sessions", "Sessions that wait for their client.", int64(sum.Kept)},
			{"subscriptions", "Topic filters of live and kept sessions.", int64(sum.Subscriptions)},
			{"most_bytes", "What the device has stored that has the most.", most},
		} {
			desc := prometheus.NewDesc("countersign_stored_"+g.name, g.help, nil, nil)
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(g.value))
		}
	}
}
