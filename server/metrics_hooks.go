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

func newHookMetrics(r *prometheus.Registry) *hookMetrics {
	m := &hookMetrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_hook_answers_total", Help: "Questions of brokers and proxies by how they were answered.",
		}, []string{"hook", "question", "allowed"}),
		answerTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "countersign_hook_answer_seconds", Help: "Time to the answer.", Buckets: []float64{.001, .005, .01, .025, .05, .1, .5, 2},
		}, []string{"hook"}),
		kicks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_hook_kicks_total", Help: "Devices whose sessions at a broker were to be ended: done, or one try failed.",
		}, []string{"hook", "result"}),
		kickSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "countersign_hook_kick_seconds", Help: "From the loss of an identity until the broker has no session of the device.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 5, 30, 300},
		}, []string{"hook"}),
	}
	r.MustRegister(m.answers, m.answerTime, m.kicks, m.kickSeconds)
	return m
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
