package main

import (
	"fmt"
	"slices"
)

// line is one measurement in the report. Names are stable: programs compare runs
// by them.
type line struct {
	name  string
	what  string
	limit string  // what it is compared to
	peers besides // whose lines follow it
}

// besides is which peers a measurement is compared with.
type besides int

const (
	noPeer     besides = iota
	plain              // mosquitto that keeps nothing
	each               // and one that saves on each change
	seconds            // and one that saves each second
	issuing            // step-ca
	responders         // cfssl
)

// stepCAPrefix is that of the names of step-ca's measurements.
const stepCAPrefix = "stepca_"

// of returns the lines of the peers below a line of ours.
func (b besides) of(name string) []line {
	switch b {
	case issuing:
		return []line{{name: stepCAPrefix + name, what: "  the same of step-ca on badger"}}
	case responders:
		return []line{{name: cfsslPrefix + name, what: "  the same of cfssl", limit: "limit_http"}}
	}
	var all []line
	for i, what := range []string{"  the same of mosquitto", "  saving on each change", "  saving each second"}[:b] {
		all = append(all, line{name: peers()[i].prefix + name, what: what})
	}
	return all
}

// lines are those of the report in order: ours and, below them, those of the peers.
func lines() []line {
	var all []line
	for _, l := range slices.Concat(ownLines(), fullLines(fullOnSQLite()), fullLines(fullOnPostgres()), otherLines()) {
		all = append(append(all, l), l.peers.of(l.name)...)
	}
	return all
}

// fullLines are those about a filled database.
func fullLines(on fullOn) []line {
	all := []line{{name: on.prefix + "start", what: on.what + ": start to serving"}}
	for _, e := range keptEnrollments() {
		what := fmt.Sprintf("enroll, %d kept connections, ", e.kept)
		all = append(all, line{name: on.empty + e.name, what: what + "beside"}, line{name: on.prefix + e.name, what: what + on.what})
	}
	if !on.postgres {
		what := "memory of the server after that, "
		all = append(all, line{name: on.empty + "memory_under_load", what: what + "beside"}, line{name: on.prefix + "memory_under_load", what: what + on.what})
	}
	all = append(all,
		line{name: on.prefix + "revoke_to_crl", what: "revoke: request to published CRL, " + on.what},
		line{name: on.prefix + "crl_stall", what: "  another client's request meanwhile"}, line{name: on.prefix + "crl_memory", what: "  memory above that of rest"})
	for _, l := range fullLists() {
		all = append(all, line{name: on.prefix + l.name, what: "list: " + l.what + ", " + on.what})
	}
	return all
}

// otherLines are those about other databases and disks.
func otherLines() []line {
	var all []line
	for _, e := range keptEnrollments() {
		what := fmt.Sprintf("enroll, %d kept connections, on PostgreSQL", e.kept)
		all = append(all, line{name: postgresPrefix + e.name, what: what}, line{name: stepCAPrefix + postgresPrefix + e.name, what: "  the same of step-ca on PostgreSQL"})
	}
	return append(all,
		line{name: "fast_enroll_64", what: "enroll, 64 kept connections, disk as it is"},
		line{name: slowPrefix + "enroll_64", what: "enroll, 64 kept connections, each sync 5 ms slower"})
}

func ownLines() []line {
	return []line{
		{"limit_sign", "P-256 sign", "", noPeer},
		{"limit_verify", "P-256 verify", "", noPeer},
		{"limit_parse_csr", "parse and check a request", "", noPeer},
		{"limit_create_certificate", "x509.CreateCertificate", "", noPeer},
		{"limit_issuance", "whole issuance in crypto/x509", "", noPeer},
		{"limit_handshake", "mutual TLS 1.3 handshake, both sides in memory", "", noPeer},
		{"limit_fsync", "append 4 KiB and fdatasync", "", noPeer},
		{"limit_accept", "bare Go accept: mutual TLS, CONNECT, CONNACK", "", noPeer},
		{"limit_http", "net/http with fixed bytes", "", noPeer},
		{"enroll_16", "enroll, EST, 16 kept connections", "limit_issuance", issuing},
		{"enroll_64", "enroll, EST, 64 kept connections", "limit_issuance", issuing},
		{"enroll_new_connection", "enroll, EST, new connection each", "limit_issuance", issuing},
		{"renew", "renew with a new key, new mutual TLS each", "limit_issuance", issuing},
		{"connect_first", "MQTT connect, first use of a certificate", "limit_accept", noPeer},
		{"connect", "MQTT connect, mutual TLS", "limit_accept", noPeer},
		{"mosquitto_connect", "  the same to mosquitto", "limit_accept", noPeer},
		{"ocsp_first", "OCSP, first answer about a certificate", "limit_http", noPeer},
		{"ocsp", "OCSP", "limit_http", responders},
		{"revoke_answer", "revoke: request to answer", "", noPeer},
		{"revoke_request_to_cut", "revoke: request to cut at the device", "", noPeer},
		{"revoke_answer_to_cut", "revoke: answer to cut (0: cut before)", "", noPeer},
		{"bystander_ping", "ping of another session meanwhile", "", noPeer},
		{"flood_calm_message", "publish at QoS 1, 1,000 devices, no flood", "", noPeer},
		{"flood_one_message", "  1,000 hostile connections/s from one address", "", noPeer},
		{"flood_many_message", "  the same from 200 addresses", "", noPeer},
		{"flood_calm_connect", "reconnect of a device, no flood", "", noPeer},
		{"flood_one_connect", "  flood from one address", "", noPeer},
		{"flood_many_connect", "  flood from 200 addresses", "", noPeer},
		{"flood_calm_server", "server's CPU, no flood: for one second", "", noPeer},
		{"flood_one_server", "  flood from one address", "", noPeer},
		{"flood_many_server", "  flood from 200 addresses", "", noPeer},
		{"flood_calm_memory", "memory of the server, no flood", "", noPeer},
		{"flood_one_memory", "  flood from one address", "", noPeer},
		{"flood_many_memory", "  flood from 200 addresses", "", noPeer},
		{"memory_under_load", "memory of the server after enrolling", "", issuing},
		{"limit_memory", "memory of an idle mutual TLS connection, bare Go", "", noPeer},
		{"session_memory", "memory of an idle session", "", plain},
		{"subscribed_memory", "memory of a session with a QoS 1 subscription", "", plain},
		{"fanin_0", "fan-in at QoS 0, 100 publishers, 1 subscriber", "", plain},
		{"fanin_1", "fan-in at QoS 1", "", seconds},
		{"kept_live", "QoS 1 to kept sessions that are connected", "", seconds},
		{"kept_away", "QoS 1 to kept sessions that are away, and come back", "", seconds},
		{"fanout_some_0", "fan-out at QoS 0 to 1,000", "", plain},
		{"fanout_some_1", "fan-out at QoS 1 to 1,000", "", each},
		{"fanout_all_0", "fan-out at QoS 0 to 10,000", "", plain},
		{"fanout_all_1", "fan-out at QoS 1 to 10,000", "", each},
		{"answer_calm", "request to answer, nothing else", "", plain},
		{"answer_fanout", "request to answer, fan-out to 10,000 each second", "", plain},
		{"scale_connect", "connect, 20,000 sessions, and subscribe", "", noPeer},
		{"scale_memory", "memory of a session of 20,000", "", noPeer},
		{"scale_command", "command to one of 20,000, QoS 1", "", noPeer},
		{"scale_fanout", "fan-out to 10,000 of them, QoS 1", "", noPeer},
	}
}
