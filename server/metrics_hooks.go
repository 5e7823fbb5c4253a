package server

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign-iot/countersign/hook"
)

// hookMetrics count what is asked by brokers and proxies of others, and what they are
// asked.
type hookMetrics struct {
	answers     *prometheus.CounterVec
	answerTime  *prometheus.HistogramVec
	kicks       *prometheus.CounterVec
	kickSeconds *prometheus.HistogramVec
}

func newHookMetrics(m *metrics) *hookMetrics {
	return &hookMetrics{
		answers:     m.counters("countersign_hook_answers_total", "Questions of brokers and proxies by how they were answered.", "hook", "question", "allowed"),
		answerTime:  m.times("countersign_hook_answer_seconds", "Time to the answer.", .001, .005, .01, .025, .05, .1, .5, 2),
		kicks:       m.counters("countersign_hook_kicks_total", "Devices whose sessions at a broker were to be ended: done, or one try failed.", "hook", "result"),
		kickSeconds: m.times("countersign_hook_kick_seconds", "From the loss of an identity until the broker has no session of the device.", .01, .05, .1, .25, .5, 1, 5, 30, 300),
	}
}

func (m *hookMetrics) answered(a hook.Answer) {
	m.answers.WithLabelValues(a.Hook, a.Question, strconv.FormatBool(a.Allowed)).Inc()
	m.answerTime.WithLabelValues(a.Hook).Observe(a.Took.Seconds())
}

func (m *hookMetrics) kicked(k hook.Kicked) {
	if !k.OK {
		m.kicks.WithLabelValues(k.Hook, "failed").Inc()
		return
	}
	m.kicks.WithLabelValues(k.Hook, "done").Inc()
	m.kickSeconds.WithLabelValues(k.Hook).Observe(k.Took.Seconds())
}
