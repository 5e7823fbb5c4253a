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

// goal is one line of what the project wants to reach. A missed one is printed,
// and is no failure of the run.
type goal struct {
	text   string
	gate   float64
	atMost bool
	unit   string
	value  func(*report) (spread, bool)
}

func goals() []goal {
	const least, most = false, true
	return []goal{
		{"enroll, CPU against step-ca on badger (its figure scaled)", 2.3, least, "x", recorded(recordedEnroll, "enroll")},
		{"enroll, share that is crypto/x509", 0.45, least, "x", ratio("limit_issuance", "enroll")},
		{"enroll on a new connection, CPU against step-ca (scaled)", 1.8, least, "x", recorded(recordedEnrollNew, "enroll_new_connection")},
		{"renew on a new connection, CPU against step-ca (scaled)", 1.35, least, "x", recorded(recordedRenew, "renew")},
		{"OCSP, CPU against fixed bytes over net/http", 0.75, least, "x", ratio("limit_http", "ocsp")},
		{"MQTT connect, CPU against a bare Go accept (goal 0.9)", 0.80, least, "x", ratio("limit_accept", "connect")},
		{"MQTT connect, CPU against mosquitto", 1.7, least, "x", ratio("mosquitto_connect", "connect")},
		{"revocation's answer to cut, p99, 1,000 sessions", 250, most, "ms", single("revoke_answer_to_cut", milliseconds)},
		{"flood: sessions lost", 0, most, "", single("flood_lost", sample.amount)},
		{"flood from one address: message p99 against none", 3, most, "x", slower("flood_one_message", "flood_calm_message")},
		{"flood from 200 addresses: message p99 against none", 3, most, "x", slower("flood_many_message", "flood_calm_message")},
		{"flood from one address: reconnect p99 against none", 3, most, "x", slower("flood_one_connect", "flood_calm_connect")},
		{"flood from 200 addresses: reconnect p99 against none", 3, most, "x", slower("flood_many_connect", "flood_calm_connect")},
		{"memory of an idle session (goal 30)", 48, most, "KiB", single("session_memory", kibibytes)},
		{"memory of a session with a QoS 1 subscription (goal 30)", 48, most, "KiB", single("subscribed_memory", kibibytes)},
		{"memory of an idle session against mosquitto", 2.5, most, "x", across("session_memory", "mosquitto_session_memory", sample.amount)},
		{"fan-in at QoS 1, CPU against mosquitto", 1, least, "x", ratio("mosquitto_fanin_1", "fanin_1")},
		{"kept QoS 1 message, connected, CPU against mosquitto saving on each change", 1, least, "x", ratio("mosquitto_each_kept_live", "kept_live")},
		{"  against mosquitto saving each second", 1, least, "x", ratio("mosquitto_second_kept_live", "kept_live")},
		{"kept QoS 1 message, away, CPU against mosquitto saving on each change", 1, least, "x", ratio("mosquitto_each_kept_away", "kept_away")},
		{"  against mosquitto saving each second", 1, least, "x", ratio("mosquitto_second_kept_away", "kept_away")},
		{"20,000 sessions: failed", 0, most, "", single("scale_failed", sample.amount)},
		{"20,000 sessions: memory of each with a QoS 1 subscription (goal 30)", 48, most, "KiB", single("scale_memory", kibibytes)},
		{"memory under enrollment (0.6 of step-ca's 145 MiB)", 87, most, "MiB", single("memory_under_load", mebibytes)},
	}
}

func (s sample) amount() float64 { return s.bytes }

func kibibytes(s sample) float64 { return s.bytes / (1 << 10) }

func mebibytes(s sample) float64 { return s.bytes / (1 << 20) }

func milliseconds(s sample) float64 { return float64(s.p99.Microseconds()) / 1000 }

// across is how one compares to another, round by round.
func across(of, to string, value func(sample) float64) func(*report) (spread, bool) {
	return func(r *report) (spread, bool) { return r.across(of, to, value) }
}

// ratio is that of CPU.
func ratio(of, to string) func(*report) (spread, bool) { return across(of, to, sample.cpuMicros) }

// slower is that of a p99.
func slower(of, to string) func(*report) (spread, bool) {
	return across(of, to, func(s sample) float64 { return micros(s.p99) })
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
