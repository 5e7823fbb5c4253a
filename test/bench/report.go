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
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// tmpfsMagic is the type of a file system in memory (statfs(2)).
const tmpfsMagic = 0x01021994

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
	mu     *sync.Mutex         // of Notes
}

type machine struct {
	CPU       string   `json:"cpu"`
	CPUs      int      `json:"cpus"`
	Go        string   `json:"go"`
	Kernel    string   `json:"kernel"`
	Mosquitto string   `json:"mosquitto,omitempty"`
	Peers     []string `json:"peers,omitempty"` // that were built
}

// result sums up the rounds. What was not measured is absent.
type result struct {
	Name      string  `json:"name"`
	What      string  `json:"what"`
	Ops       int     `json:"ops,omitempty"` // in each round
	PerSecond *spread `json:"per_second,omitempty"`
	P50       *spread `json:"p50_us,omitempty"`
	P99       *spread `json:"p99_us,omitempty"`
	Second    *spread `json:"worst_second_us,omitempty"` // p99 of the worst second
	Worst     *spread `json:"worst_us,omitempty"`
	CPU       *spread `json:"cpu_us,omitempty"` // of the server, for an operation
	Bytes     *spread `json:"bytes,omitempty"`
	Limit     string  `json:"limit,omitempty"`
	OfLimit   *spread `json:"of_limit,omitempty"` // CPU of the limit / CPU of this
}

func newReport(ctx context.Context, o options, dir string) *report {
	r := &report{
		Time: now().UTC(), Database: "sqlite", Rounds: o.rounds, Quick: o.size.enroll < fullSize().enroll,
		series: map[string][]sample{}, mu: &sync.Mutex{},
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
	if o.database != "" {
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
	if syscall.Statfs(dir, &fs) == nil && fs.Type == tmpfsMagic {
		r.Notes = append(r.Notes, "the data folder is in memory, where fdatasync costs nothing: set TMPDIR to a folder on the disk to measure")
	}
	return r
}

// note adds what a table cannot show.
func (r *report) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// firstLine is that of a program's output; empty if it cannot be run.
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

func (r *report) add(samples ...sample) {
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
		res.Second = present(all, func(s sample) float64 { return micros(s.second) })
		res.Worst = present(all, func(s sample) float64 { return micros(s.worst) })
		res.CPU = present(all, sample.cpuMicros)
		res.Bytes = present(all, sample.amount)
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

// present returns nil where nothing was measured.
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
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) } // Flush returns the error
	p("\n%s  %s  %d x %s  %s  Linux %s  %s %s\n", r.Time.Format(time.DateOnly), r.Revision, r.Machine.CPUs, r.Machine.CPU, r.Machine.Go, r.Machine.Kernel, r.Machine.Mosquitto, strings.Join(r.Machine.Peers, ", "))
	p("%s, %d rounds: median [min..max]\n\n", r.Database, r.Rounds)
	p("what\tper second\tp50 / p99, p99 of the worst second\tCPU us\tof its limit\n")
	for _, l := range r.Results {
		rate, took, cpu, of := "", "", "", ""
		if l.PerSecond != nil {
			rate = ranged(*l.PerSecond)
		}
		if l.P99 != nil || l.Ops > 0 && l.PerSecond == nil && l.Bytes == nil { // all 0: none waited
			took = fmt.Sprintf("%s / %s ms", short(median(l.P50)/1000), short(median(l.P99)/1000))
		}
		if l.Second != nil {
			took += ", worst second " + short(median(l.Second)/1000)
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
	p("\ngoal\tours\tpeer or limit\tratio\tfirst gate\tgoal\t\n")
	for _, o := range r.Goals {
		p("%s\n", &o)
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
