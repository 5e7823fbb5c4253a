package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// tmpfsMagic is the type of a file system in memory (statfs(2)).
const tmpfsMagic = 0x01021994

// line is one measurement in the report. Names are stable: programs compare runs
// by them.
type line struct {
	name  string
	what  string
	limit string // what it is compared to
}

func lines() []line {
	return append([]line{
		{"limit_sign", "P-256 sign", ""},
		{"limit_verify", "P-256 verify", ""},
		{"limit_parse_csr", "parse and check a request", ""},
		{"limit_create_certificate", "x509.CreateCertificate", ""},
		{"limit_issuance", "whole issuance in crypto/x509", ""},
		{"limit_handshake", "mutual TLS 1.3 handshake, both sides in memory", ""},
		{"limit_fsync", "append 4 KiB and fdatasync", ""},
		{"limit_accept", "bare Go accept: mutual TLS, CONNECT, CONNACK", ""},
		{"limit_http", "net/http with fixed bytes", ""},
		{"enroll", "enroll, EST, kept connections", "limit_issuance"},
		{"enroll_new_connection", "enroll, EST, new connection each", "limit_issuance"},
		{"renew", "renew, EST, new mutual TLS each", "limit_issuance"},
		{"connect_first", "MQTT connect, first use of a certificate", "limit_accept"},
		{"connect", "MQTT connect, mutual TLS", "limit_accept"},
		{"mosquitto_connect", "  the same to mosquitto", "limit_accept"},
		{"ocsp_first", "OCSP, first answer about a certificate", "limit_http"},
		{"ocsp", "OCSP", "limit_http"},
		{"revoke_answer", "revoke: request to answer", ""},
		{"revoke_request_to_cut", "revoke: request to cut at the device", ""},
		{"revoke_answer_to_cut", "revoke: answer to cut (0: cut before)", ""},
		{"bystander_ping", "ping of another session meanwhile", ""},
		{"flood_calm_message", "publish at QoS 1, 1,000 devices, no flood", ""},
		{"flood_one_message", "  1,000 hostile connections/s from one address", ""},
		{"flood_one_start", "  in its first 2 seconds", ""},
		{"flood_many_message", "  the same from 200 addresses", ""},
		{"flood_many_start", "  in its first 2 seconds", ""},
		{"flood_calm_connect", "reconnect of a device, no flood", ""},
		{"flood_one_connect", "  flood from one address", ""},
		{"flood_many_connect", "  flood from 200 addresses", ""},
		{"flood_calm_server", "server's CPU, no flood: for one second", ""},
		{"flood_one_server", "  flood from one address", ""},
		{"flood_many_server", "  flood from 200 addresses", ""},
		{"flood_calm_memory", "memory of the server, no flood", ""},
		{"flood_one_memory", "  flood from one address", ""},
		{"flood_many_memory", "  flood from 200 addresses", ""},
		{"memory_under_load", "memory of the server after enrolling", ""},
	}, brokerLines()...)
}

// brokerLines are those of sessions and messages.
func brokerLines() []line {
	return []line{
		{"limit_memory", "memory of an idle mutual TLS connection, bare Go", ""},
		{"session_memory", "memory of an idle session", ""},
		{"mosquitto_session_memory", "  the same of mosquitto", ""},
		{"subscribed_memory", "memory of a session with a QoS 1 subscription", ""},
		{"mosquitto_subscribed_memory", "  the same of mosquitto", ""},
		{"fanin_0", "fan-in at QoS 0, 100 publishers, 1 subscriber", ""},
		{"mosquitto_fanin_0", "  the same of mosquitto", ""},
		{"fanin_1", "fan-in at QoS 1", ""},
		{"mosquitto_fanin_1", "  the same of mosquitto", ""},
		{"mosquitto_each_fanin_1", "  saving on each change", ""},
		{"mosquitto_second_fanin_1", "  saving each second", ""},
		{"kept_live", "QoS 1 to kept sessions that are connected", ""},
		{"mosquitto_kept_live", "  the same of mosquitto", ""},
		{"mosquitto_each_kept_live", "  saving on each change", ""},
		{"mosquitto_second_kept_live", "  saving each second", ""},
		{"kept_away", "QoS 1 to kept sessions that are away, and come back", ""},
		{"mosquitto_kept_away", "  the same of mosquitto", ""},
		{"mosquitto_each_kept_away", "  saving on each change", ""},
		{"mosquitto_second_kept_away", "  saving each second", ""},
		{"fanout_some_0", "fan-out at QoS 0 to 1,000", ""},
		{"mosquitto_fanout_some_0", "  the same of mosquitto", ""},
		{"fanout_some_1", "fan-out at QoS 1 to 1,000", ""},
		{"mosquitto_fanout_some_1", "  the same of mosquitto", ""},
		{"mosquitto_each_fanout_some_1", "  saving on each change", ""},
		{"fanout_all_0", "fan-out at QoS 0 to 10,000", ""},
		{"mosquitto_fanout_all_0", "  the same of mosquitto", ""},
		{"fanout_all_1", "fan-out at QoS 1 to 10,000", ""},
		{"mosquitto_fanout_all_1", "  the same of mosquitto", ""},
		{"mosquitto_each_fanout_all_1", "  saving on each change", ""},
		{"answer_calm", "request to answer, nothing else", ""},
		{"mosquitto_answer_calm", "  the same of mosquitto", ""},
		{"answer_fanout", "request to answer, fan-out to 10,000 each second", ""},
		{"mosquitto_answer_fanout", "  the same of mosquitto", ""},
		{"scale_connect", "connect, 20,000 sessions, and subscribe", ""},
		{"scale_memory", "memory of a session of 20,000", ""},
		{"scale_command", "command to one of 20,000, QoS 1", ""},
		{"scale_fanout", "fan-out to 10,000 of them, QoS 1", ""},
	}
}

// report is the result of a run.
type report struct {
	Time     time.Time `json:"time"`
	Revision string    `json:"revision,omitempty"`
	Machine  machine   `json:"machine"`
	Database string    `json:"database"`
	Rounds   int       `json:"rounds"`
	Quick    bool      `json:"quick,omitempty"`
	Notes    []string  `json:"notes"`
	Results  []result  `json:"results"`
	Goals    []outcome `json:"goals"`

	series map[string][]sample // by name, one for each round
}

type machine struct {
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	Go        string `json:"go"`
	Kernel    string `json:"kernel"`
	Mosquitto string `json:"mosquitto,omitempty"`
}

// result sums up the rounds. What was not measured is absent.
type result struct {
	Name      string  `json:"name"`
	What      string  `json:"what"`
	Ops       int     `json:"ops,omitempty"` // in each round
	PerSecond *spread `json:"per_second,omitempty"`
	P50       *spread `json:"p50_us,omitempty"`
	P99       *spread `json:"p99_us,omitempty"`
	Worst     *spread `json:"worst_us,omitempty"`
	CPU       *spread `json:"cpu_us,omitempty"` // of the server, for an operation
	Bytes     *spread `json:"bytes,omitempty"`
	Limit     string  `json:"limit,omitempty"`
	OfLimit   *spread `json:"of_limit,omitempty"` // CPU of the limit / CPU of this
}

func newReport(ctx context.Context, b *bench) *report {
	r := &report{
		Time: now().UTC(), Database: "sqlite", Rounds: b.opts.rounds, Quick: b.opts.size.enroll < fullSize().enroll,
		series: map[string][]sample{},
		Notes: []string{
			"the load generator runs on the same cores: compare CPU and ratios, not what is done per second",
			"CPU is that of the server's process, with what it does after its answers, read to 10 ms",
		},
	}
	r.Machine = machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), CPU: cpuModel()}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		r.Machine.Kernel = strings.TrimSpace(string(text))
	}
	r.Revision = firstLine(ctx, "git", "describe", "--always", "--dirty")
	if b.opts.database != "" {
		r.Database = "postgres"
		r.Notes = append(r.Notes, "the CPU of PostgreSQL is not in these figures")
	}
	if path, err := mosquittoPath(); err == nil {
		r.Machine.Mosquitto = firstLine(ctx, path, "-h")
	} else {
		r.Notes = append(r.Notes, "mosquitto is not installed and was not measured")
	}
	if r.Quick {
		r.Notes = append(r.Notes, "-quick: counts are too small for figures that mean anything")
	}
	var fs syscall.Statfs_t
	if syscall.Statfs(b.dir, &fs) == nil && fs.Type == tmpfsMagic {
		r.Notes = append(r.Notes, "the data folder is in memory, where fdatasync costs nothing: set TMPDIR to a folder on the disk to measure")
	}
	return r
}

// firstLine of what a program says; empty if it cannot be run.
func firstLine(ctx context.Context, name string, args ...string) string {
	text, _ := exec.CommandContext(ctx, name, args...).Output() //nolint:gosec // git, or the peer; mosquitto -h exits with 3
	first, _, _ := strings.Cut(string(text), "\n")
	return first
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func (r *report) add(samples []sample) {
	for _, s := range samples {
		r.series[s.name] = append(r.series[s.name], s)
	}
}

// finish sums up.
func (r *report) finish() {
	for _, l := range lines() {
		all := r.series[l.name]
		if len(all) == 0 {
			continue
		}
		res := result{Name: l.name, What: strings.TrimSpace(l.what), Ops: all[0].ops}
		res.PerSecond = present(all, sample.perSecond)
		res.P50 = present(all, func(s sample) float64 { return micros(s.p50) })
		res.P99 = present(all, func(s sample) float64 { return micros(s.p99) })
		res.Worst = present(all, func(s sample) float64 { return micros(s.worst) })
		res.CPU = present(all, sample.cpuMicros)
		res.Bytes = present(all, func(s sample) float64 { return s.bytes })
		if v, ok := r.across(l.limit, l.name, sample.cpuMicros); ok {
			res.Limit, res.OfLimit = l.limit, &v
		}
		r.Results = append(r.Results, res)
	}
	for _, g := range goals() {
		if o, ok := g.judge(r); ok {
			r.Goals = append(r.Goals, o)
		}
	}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func (s sample) cpuMicros() float64 {
	if s.ops == 0 {
		return 0
	}
	return micros(s.cpu) / float64(s.ops)
}

// perSecond is for what was done by many at once.
func (s sample) perSecond() float64 {
	if s.wall == 0 || s.alone {
		return 0
	}
	return float64(s.ops) / s.wall.Seconds()
}

func spreadBy(all []sample, value func(sample) float64) spread {
	values := make([]float64, len(all))
	for i, s := range all {
		values[i] = value(s)
	}
	return spreadOf(values)
}

// present gives nil where there is nothing to say.
func present(all []sample, value func(sample) float64) *spread {
	s := spreadBy(all, value)
	if s.Max == 0 {
		return nil
	}
	return &s
}

// across divides one by the other in each round.
func (r *report) across(of, to string, value func(sample) float64) (spread, bool) {
	var values []float64
	for i, s := range r.series[to] {
		if i >= len(r.series[of]) || value(s) == 0 {
			return spread{}, false
		}
		values = append(values, value(r.series[of][i])/value(s))
	}
	return spreadOf(values), len(values) > 0
}

func (r *report) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return saveFile(path, append(b, '\n'))
}

func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) } // Flush tells
	p("\n%s  %s  %d x %s  %s  Linux %s  %s\n", r.Time.Format(time.DateOnly), r.Revision, r.Machine.CPUs, r.Machine.CPU, r.Machine.Go, r.Machine.Kernel, r.Machine.Mosquitto)
	p("%s, %d rounds: median [min..max]\n\n", r.Database, r.Rounds)
	p("what\tper second\tp50 / p99\tCPU us\tof its limit\n")
	for _, l := range r.Results {
		rate, took, cpu, of := "", "", "", ""
		if l.PerSecond != nil {
			rate = ranged(*l.PerSecond)
		}
		if l.P99 != nil || l.Ops > 0 && l.PerSecond == nil && l.Bytes == nil { // all 0: none waited
			took = fmt.Sprintf("%s / %s ms", short(median(l.P50)/1000), short(median(l.P99)/1000))
		}
		if l.Worst != nil {
			took += ", worst " + short(median(l.Worst)/1000)
		}
		if l.CPU != nil {
			cpu = ranged(*l.CPU)
		}
		if l.Bytes != nil {
			took = short(l.Bytes.Median/1024) + " KiB"
		}
		if l.OfLimit != nil {
			of = fmt.Sprintf("%.0f %% of %s", 100*l.OfLimit.Median, l.Limit)
		}
		p("%s\t%s\t%s\t%s\t%s\n", l.What, rate, took, cpu, of)
	}
	p("\ngoal\tgate\there\t\n")
	for _, o := range r.Goals {
		p("%s\n", o)
	}
	for _, n := range r.Notes {
		p("note: %s\n", n)
	}
	return w.Flush()
}

func median(s *spread) float64 {
	if s == nil {
		return 0
	}
	return s.Median
}

// ranged is a median with its range, if there is one.
func ranged(s spread) string {
	if s.Min == s.Max {
		return short(s.Median)
	}
	return fmt.Sprintf("%s [%s..%s]", short(s.Median), short(s.Min), short(s.Max))
}

// short writes a number to three digits.
func short(v float64) string {
	if v >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
