package server

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign"
)

type storedGauge struct {
	desc  *prometheus.Desc
	value func(sum countersign.Usage, most int64) int64
}

func storedGauges() []storedGauge {
	gauge := func(name, help string, value func(countersign.Usage, int64) int64) storedGauge {
		return storedGauge{prometheus.NewDesc("countersign_stored_"+name, help, nil, nil), value}
	}
	return []storedGauge{
		gauge("retained_messages", "Retained messages of devices.", func(u countersign.Usage, _ int64) int64 { return int64(u.Retained) }),
		gauge("retained_bytes", "Retained messages of devices, with their topics.", func(u countersign.Usage, _ int64) int64 { return u.RetainedOctets }),
		gauge("queued_messages", "Messages that wait for devices.", func(u countersign.Usage, _ int64) int64 { return int64(u.Queued) }),
		gauge("queued_bytes", "Those in octets.", func(u countersign.Usage, _ int64) int64 { return u.QueuedOctets }),
		gauge("sessions", "Sessions that wait for their client.", func(u countersign.Usage, _ int64) int64 { return int64(u.Kept) }),
		gauge("subscriptions", "Topic filters of live and kept sessions.", func(u countersign.Usage, _ int64) int64 { return int64(u.Subscriptions) }),
		gauge("most_bytes", "What the device has stored that has the most.", func(_ countersign.Usage, most int64) int64 { return most }),
	}
}

// storedMetrics collects what devices have in the message store, and nothing where that
// cannot be read.
func storedMetrics(messages countersign.MessageStore) collector {
	gauges := storedGauges()
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
		for _, g := range gauges {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, float64(g.value(sum, most)))
		}
	}
}
