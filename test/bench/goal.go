package main

import (
	"fmt"
	"slices"
)

// goal is one line of what the project wants to reach: how ours compares with a peer, a
// limit, or itself without the load. A missed one is printed, and is no failure of the run.
type goal struct {
	text  string
	ours  string // line of the report
	peer  string // line that it is compared with; empty: the value itself is bounded
	by    func(sample) float64
	sense sense
	first float64 // gate
	goal  float64
	unit  string
}

// sense is which way is better.
type sense int

const (
	// least bounds what the peer's cost is of ours: higher is better.
	least sense = iota
	// most bounds what our cost is of the peer's, or our cost alone: lower is better.
	most
)

func goals() []goal {
	cpu, kib, mem, wall := sample.cpuMicros, kibibytes, sample.amount, wallMicros
	all := []goal{
		{"enroll, 16 kept connections, CPU against step-ca", "enroll_16", "stepca_enroll_16", cpu, least, 2.3, 2.8, "x"},
		{"enroll, 64 kept connections, CPU against step-ca", "enroll_64", "stepca_enroll_64", cpu, least, 3, 3.8, "x"},
		{"enroll, new TLS connection, CPU against step-ca", "enroll_new_connection", "stepca_enroll_new_connection", cpu, least, 1.5, 1.8, "x"},
		{"renew, new mutual TLS, CPU against step-ca /rekey", "renew", "stepca_renew", cpu, least, 1.2, 1.5, "x"},
		{"enroll on PostgreSQL, 16 kept connections, CPU against step-ca on it", "postgres_enroll_16", "stepca_postgres_enroll_16", cpu, least, 8, 10, "x"},
		{"enroll on PostgreSQL, 64 kept connections, CPU against step-ca on it", "postgres_enroll_64", "stepca_postgres_enroll_64", cpu, least, 15, 20, "x"},
		{"each sync 5 ms slower, 64 kept connections, rate against undelayed", "slow_enroll_64", "fast_enroll_64", wall, least, 0.85, 0.90, "x"},
		{"memory while enrolling, share of step-ca's", "memory_under_load", "stepca_memory_under_load", kib, most, 0.5, 0.3, "x"},
		{"enroll, share that is crypto/x509", "enroll_16", "limit_issuance", cpu, least, 0.45, 0.75, "x"},
		{"OCSP, CPU against fixed bytes over net/http", "ocsp", "limit_http", cpu, least, 0.90, 0.95, "x"},
		{"OCSP, CPU against cfssl", "ocsp", "cfssl_ocsp", cpu, least, 2, 2.8, "x"},
		{"MQTT connect, CPU against a bare Go accept", "connect", "limit_accept", cpu, least, 0.80, 0.90, "x"},
		{"MQTT connect, CPU against mosquitto", "connect", "mosquitto_connect", cpu, least, 1.7, 1.7, "x"},
		{"revocation's answer to cut, p99, 1,000 sessions", "revoke_answer_to_cut", "", milliseconds, most, 250, 20, "ms"},
		{"flood: sessions lost", "flood_lost", "", mem, most, 0, 0, ""},
		{"flood from one address: message p99 against none, worst second", "flood_one_message", "flood_calm_message", slowest, most, 5, 3, "x"},
		{"flood from 200 addresses: message p99 against none, worst second", "flood_many_message", "flood_calm_message", slowest, most, 5, 3, "x"},
		{"flood from one address: reconnect p99 against none, worst second", "flood_one_connect", "flood_calm_connect", slowest, most, 5, 3, "x"},
		{"flood from 200 addresses: reconnect p99 against none, worst second", "flood_many_connect", "flood_calm_connect", slowest, most, 5, 3, "x"},
		{"memory of an idle session", "session_memory", "", kib, most, 48, 30, "KiB"},
		{"memory of a session with a QoS 1 subscription", "subscribed_memory", "", kib, most, 48, 30, "KiB"},
		{"memory of an idle session against mosquitto", "session_memory", "mosquitto_session_memory", kib, most, 2.5, 1.25, "x"},
		{"fan-in at QoS 1, CPU against mosquitto", "fanin_1", "mosquitto_fanin_1", cpu, least, 1, 1, "x"},
		{"kept QoS 1 message, connected, CPU against mosquitto saving on each change", "kept_live", "mosquitto_each_kept_live", cpu, least, 1, 1, "x"},
		{"  against mosquitto saving each second", "kept_live", "mosquitto_second_kept_live", cpu, least, 1, 1, "x"},
		{"kept QoS 1 message, away, CPU against mosquitto saving on each change", "kept_away", "mosquitto_each_kept_away", cpu, least, 1, 1, "x"},
		{"  against mosquitto saving each second", "kept_away", "mosquitto_second_kept_away", cpu, least, 1, 1, "x"},
		{"20,000 sessions: failed", "scale_failed", "", mem, most, 0, 0, ""},
		{"20,000 sessions: memory of each with a QoS 1 subscription", "scale_memory", "", kib, most, 48, 30, "KiB"},
	}
	return slices.Concat(all, fullGoals(fullOnSQLite()), fullGoals(fullOnPostgres()))
}

// fullGoals are those about a filled database.
func fullGoals(on fullOn) []goal {
	all := []goal{
		{"enroll, cost against an empty database, " + on.what, on.prefix + "enroll_16", on.empty + "enroll_16", sample.cpuMicros, most, 1.15, 1.05, "x"},
		{"revoke to published CRL, p99, " + on.what, on.prefix + "revoke_to_crl", "", milliseconds, most, 1000, 300, "ms"},
		{"  others' worst stall meanwhile", on.prefix + "crl_stall", "", worstMillis, most, 20, 10, "ms"},
		{"  memory above that of rest", on.prefix + "crl_memory", "", mebibytes, most, 100, 80, "MiB"},
		{"start to serving, " + on.what, on.prefix + "start", "", milliseconds, most, 2000, 2000, "ms"},
	}
	for _, l := range fullLists() {
		all = append(all, goal{"p99 of a list: " + l.what + ", " + on.what, on.prefix + l.name, "", milliseconds, most, 20, 5, "ms"})
	}
	return all
}

func (s sample) amount() float64 { return s.bytes }

func kibibytes(s sample) float64 { return s.bytes / (1 << 10) }

func mebibytes(s sample) float64 { return s.bytes / (1 << 20) }

func worstMillis(s sample) float64 { return float64(s.worst.Microseconds()) / 1000 }

func milliseconds(s sample) float64 { return float64(s.p99.Microseconds()) / 1000 }

// wallMicros is the time that an operation took of the whole: the inverse of the rate.
func wallMicros(s sample) float64 { return micros(s.wall) / float64(max(s.ops, 1)) }

// slowest is the p99 of the worst second, or that of all where seconds are not apart.
func slowest(s sample) float64 {
	if s.second == 0 {
		return micros(s.p99)
	}
	return micros(s.second)
}

// outcome is a goal with what came of it. Ours and Peer are what was compared, and Value
// how, taken within each round.
type outcome struct {
	Goal    string  `json:"goal"`
	Unit    string  `json:"unit"`
	AtMost  bool    `json:"at_most,omitempty"`
	First   float64 `json:"first_gate"`
	Aim     float64 `json:"goal_value"`
	Ours    spread  `json:"ours"`
	Peer    *spread `json:"peer,omitempty"`
	Value   spread  `json:"value"`
	Verdict verdict `json:"verdict"` // by the median
}

// verdict is what a goal came to.
type verdict string

const (
	missed   verdict = "missed"
	metFirst verdict = "met"
	metGoal  verdict = "met, and the goal"
)

// judge compares; it reports false where something was not measured.
func (g *goal) judge(r *report) (outcome, bool) {
	ours, theirs := r.series[g.ours], r.series[g.peer]
	o := outcome{Goal: g.text, Unit: g.unit, AtMost: g.sense == most, First: g.first, Aim: g.goal, Ours: spreadBy(ours, g.by)}
	o.Value = o.Ours
	if g.peer != "" {
		of, to := g.peer, g.ours
		if g.sense == most {
			of, to = to, of
		}
		var ok bool
		if o.Value, ok = r.across(of, to, g.by); !ok {
			return o, false
		}
		peer := spreadBy(theirs, g.by)
		o.Peer = &peer
	}
	o.Verdict = missed
	for _, step := range []struct {
		bound   float64
		verdict verdict
	}{{g.first, metFirst}, {g.goal, metGoal}} {
		if v := o.Value.Median; g.sense == least && v >= step.bound || g.sense == most && v <= step.bound {
			o.Verdict = step.verdict
		}
	}
	return o, len(ours) > 0
}

func (o *outcome) String() string {
	sign, peer := ">=", ""
	if o.AtMost {
		sign = "<="
	}
	if o.Peer != nil {
		peer = short(o.Peer.Median)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s %s\t%s %s\t%s %s\t%s",
		o.Goal, short(o.Ours.Median), peer, ranged(o.Value), o.Unit, sign, short(o.First), sign, short(o.Aim), o.Verdict)
}
