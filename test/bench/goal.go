package main

import "fmt"

// What an older run on 2 cores of an AMD EPYC (Zen 4) measured for step-ca v0.30.2
// on badger, in microseconds of server CPU, and for the whole issuance in
// crypto/x509 beside it. step-ca is not run here: its figures are scaled by how
// that limit differs in this run.
const (
	recordedIssuance  = 226
	recordedEnroll    = 1155
	recordedEnrollNew = 1767
	recordedRenew     = 1606
)

// goal is one line of what the project wants to reach. A missed one is said and
// is no failure of the run.
type goal struct {
	text   string
	gate   float64
	atMost bool
	unit   string
	value  func(*report) (spread, bool)
}

func goals() []goal {
	return []goal{
		{
			text: "enroll, CPU against step-ca on badger (its figure scaled)", gate: 2.3, unit: "x",
			value: recorded(recordedEnroll, "enroll"),
		},
		{text: "enroll, share that is crypto/x509", gate: 0.45, unit: "x", value: ratio("limit_issuance", "enroll")},
		{
			text: "enroll on a new connection, CPU against step-ca (scaled)", gate: 1.8, unit: "x",
			value: recorded(recordedEnrollNew, "enroll_new_connection"),
		},
		{text: "renew on a new connection, CPU against step-ca (scaled)", gate: 1.35, unit: "x", value: recorded(recordedRenew, "renew")},
		{text: "OCSP, CPU against fixed bytes over net/http", gate: 0.75, unit: "x", value: ratio("limit_http", "ocsp")},
		{text: "MQTT connect, CPU against a bare Go accept (goal 0.9)", gate: 0.80, unit: "x", value: ratio("limit_accept", "connect")},
		{text: "MQTT connect, CPU against mosquitto", gate: 1.7, unit: "x", value: ratio("mosquitto_connect", "connect")},
		{
			text: "revocation's answer to cut, p99, 1,000 sessions", gate: 250, atMost: true, unit: "ms",
			value: single("revoke_answer_to_cut", func(s sample) float64 { return float64(s.p99.Microseconds()) / 1000 }),
		},
		{text: "flood: sessions lost", gate: 0, atMost: true, value: single("flood_lost", func(s sample) float64 { return s.bytes })},
		{text: "flood from one address: message p99 against none", gate: 3, atMost: true, unit: "x", value: slower("flood_one_message", "flood_calm_message")},
		{text: "flood from 200 addresses: message p99 against none", gate: 3, atMost: true, unit: "x", value: slower("flood_many_message", "flood_calm_message")},
		{text: "flood from one address: reconnect p99 against none", gate: 3, atMost: true, unit: "x", value: slower("flood_one_connect", "flood_calm_connect")},
		{text: "flood from 200 addresses: reconnect p99 against none", gate: 3, atMost: true, unit: "x", value: slower("flood_many_connect", "flood_calm_connect")},
		{text: "memory of an idle session (goal 30)", gate: 48, atMost: true, unit: "KiB", value: single("session_memory", kibibytes)},
		{text: "memory of a session with a QoS 1 subscription (goal 30)", gate: 48, atMost: true, unit: "KiB", value: single("subscribed_memory", kibibytes)},
		{text: "memory of an idle session against mosquitto", gate: 2.5, atMost: true, unit: "x", value: memoryRatio},
		{text: "fan-in at QoS 1, CPU against mosquitto", gate: 1, unit: "x", value: ratio("mosquitto_fanin_1", "fanin_1")},
		{
			text: "kept QoS 1 message, connected, CPU against mosquitto saving on each change", gate: 1, unit: "x",
			value: ratio("mosquitto_each_kept_live", "kept_live"),
		},
		{text: "  against mosquitto saving each second", gate: 1, unit: "x", value: ratio("mosquitto_second_kept_live", "kept_live")},
		{
			text: "kept QoS 1 message, away, CPU against mosquitto saving on each change", gate: 1, unit: "x",
			value: ratio("mosquitto_each_kept_away", "kept_away"),
		},
		{text: "  against mosquitto saving each second", gate: 1, unit: "x", value: ratio("mosquitto_second_kept_away", "kept_away")},
		{text: "20,000 sessions: failed", gate: 0, atMost: true, value: single("scale_failed", func(s sample) float64 { return s.bytes })},
		{text: "20,000 sessions: memory of each with a QoS 1 subscription (goal 30)", gate: 48, atMost: true, unit: "KiB", value: single("scale_memory", kibibytes)},
		{
			text: "memory under enrollment (0.6 of step-ca's 145 MiB)", gate: 87, atMost: true, unit: "MiB",
			value: single("memory_under_load", func(s sample) float64 { return s.bytes / (1 << 20) }),
		},
	}
}

// ratio is how the CPU of one compares to that of another, round by round.
func ratio(of, to string) func(*report) (spread, bool) {
	return func(r *report) (spread, bool) { return r.across(of, to, sample.cpuMicros) }
}

// slower is how a p99 compares to another, round by round.
func slower(of, to string) func(*report) (spread, bool) {
	return func(r *report) (spread, bool) {
		return r.across(of, to, func(s sample) float64 { return micros(s.p99) })
	}
}

func kibibytes(s sample) float64 { return s.bytes / 1024 }

func memoryRatio(r *report) (spread, bool) {
	return r.across("session_memory", "mosquitto_session_memory", func(s sample) float64 { return s.bytes })
}

func recorded(micros float64, name string) func(*report) (spread, bool) {
	return func(r *report) (spread, bool) {
		s, ok := r.across("limit_issuance", name, sample.cpuMicros)
		scale := micros / recordedIssuance
		return spread{s.Median * scale, s.Min * scale, s.Max * scale}, ok
	}
}

func single(name string, value func(sample) float64) func(*report) (spread, bool) {
	return func(r *report) (spread, bool) {
		all := r.series[name]
		return spreadBy(all, value), len(all) > 0
	}
}

// outcome is a goal with what came of it.
type outcome struct {
	Goal   string  `json:"goal"`
	Unit   string  `json:"unit"`
	AtMost bool    `json:"at_most,omitempty"`
	Gate   float64 `json:"gate"`
	Value  spread  `json:"value"`
	Met    bool    `json:"met"` // by the median
}

func (g goal) judge(r *report) (outcome, bool) {
	v, ok := g.value(r)
	o := outcome{Goal: g.text, Unit: g.unit, AtMost: g.atMost, Gate: g.gate, Value: v, Met: v.Median >= g.gate}
	if g.atMost {
		o.Met = v.Median <= g.gate
	}
	return o, ok
}

func (o outcome) String() string {
	verdict, sign := "met", ">="
	if !o.Met {
		verdict = "NOT MET"
	}
	if o.AtMost {
		sign = "<="
	}
	return fmt.Sprintf("%s\t%s %s\t%s %s\t%s", o.Goal, sign, short(o.Gate), ranged(o.Value), o.Unit, verdict)
}
