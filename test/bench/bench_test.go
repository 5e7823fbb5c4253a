package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestMain lets the test program be the process of the limits, as bench itself is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{limitsCommand, hostileCommand, askCommand}, os.Args[1]) {
		if err := command(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "countersign-bench-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "countersign")
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// program is the server that all tests measure, once built is called.
var program string

// built builds it once, and as tests are built, so that the packages that tests have
// compiled need not be compiled again. It returns why that failed.
var built = sync.OnceValue(func() string {
	out, err := exec.Command("go", "build", "-o", program, "../../cmd/countersign").CombinedOutput()
	if err != nil {
		return err.Error() + ": " + string(out)
	}
	return ""
})

// serverProgram returns the program to measure.
func serverProgram(t *testing.T) string {
	t.Helper()
	if failure := built(); failure != "" {
		t.Fatal(failure)
	}
	return program
}

// tinySize touches every path and waits for nothing.
func tinySize() size {
	return size{
		enroll: 20, connect: 10, ocsp: 80, sessions: 12, cuts: 3, limit: 5 * time.Millisecond, rest: 10 * time.Millisecond, quiet: clockTick, hostile: 50, flood: 500 * time.Millisecond,
		idle: 12, messages: 200, fan: 20, ask: 50 * time.Millisecond, scale: 20, commands: 5, fill: filling{200, 260, 60, 1000},
	}
}

// runTimeout is many times what a tiny run takes, a cold build included.
const runTimeout = 5 * time.Minute

func TestRunMeasuresEverything(t *testing.T) {
	if !hasMosquitto() {
		if os.Getenv("COUNTERSIGN_REQUIRE_PEERS") == "1" {
			t.Fatal("mosquitto is not installed")
		}
		t.Log("mosquitto is not installed: it is not compared")
	}
	for name, only := range map[string][]string{"all": nil, "scale": {"scale"}, "full": {"full"}, "full-postgres": {"full-postgres"}, "postgres": {"postgres"}, "slow": {"slow"}} {
		t.Run(name, func(t *testing.T) {
			switch name {
			case "postgres", "full-postgres":
				storetest.Need(t)
			case "slow":
				if !hasStrace() {
					kit.Missing(t, "strace is not installed: apt-get install strace")
				}
			}
			r, out := measured(t, options{size: tinySize(), rounds: 1, only: only})
			missing := func(name string) bool { // a test builds no peer: that takes minutes
				built := func(s source) bool { return slices.Contains(r.Machine.Peers, s.String()) }
				return strings.HasPrefix(name, "mosquitto") && !hasMosquitto() ||
					strings.HasPrefix(name, stepCAPrefix) && !built(stepCASource()) || strings.HasPrefix(name, cfsslPrefix) && !built(cfsslSource())
			}
			var want, got []string
			for _, l := range lines() {
				if !missing(l.name) && askedSubject(l.name) == strings.Join(only, "") {
					want = append(want, l.name)
				}
			}
			for _, res := range r.Results {
				got = append(got, res.Name)
				if !strings.Contains(out, res.What) {
					t.Errorf("the table does not have %q", res.What)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("measured (-want +got):\n%s", diff)
			}
			if len(r.Goals) == 0 {
				t.Error("no goal was judged")
			}
		})
	}
}

// askedSubject returns the subject that measures a line, if it runs only where it is named.
func askedSubject(name string) string {
	switch prefix, rest, _ := strings.Cut(name, "_"); prefix {
	case "scale":
		return "scale"
	case "full", "empty":
		if strings.HasPrefix(rest, postgresPrefix) {
			return "full-postgres"
		}
		return "full"
	case "fast", "slow":
		return "slow"
	case "postgres":
		return "postgres"
	case "stepca":
		return askedSubject(rest)
	}
	return ""
}

// measured runs the bench and returns its result and what it printed.
func measured(t *testing.T, o options) (r report, printed string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
	defer cancel()
	o.json, o.server = filepath.Join(t.TempDir(), "bench.json"), serverProgram(t)
	var out bytes.Buffer
	if err := run(ctx, o, &out); err != nil {
		t.Fatalf("run: %v\n%s", err, out.String())
	}
	text, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return r, out.String()
}

func TestRunStopsWhenTheServerCannotStart(t *testing.T) {
	o := options{size: tinySize(), rounds: 1, database: "postgres://127.0.0.1:1/nothing", server: serverProgram(t)}
	err := run(t.Context(), o, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "the connection was refused") {
		t.Errorf("run on a database that is not there: got %v, want why the server cannot start", err)
	}
}

func TestParseStatCountsAfterTheName(t *testing.T) {
	const tail = " S 1 2 3 4 5 6 7 8 9 10 150 25 30 12 20 0 9 0 1 2 3"
	for _, stat := range []string{"42 (countersign)" + tail, "42 (a) R 9 (b c)" + tail} {
		own, children, err := parseStat(stat)
		if err != nil || own != 1750*time.Millisecond || children != 420*time.Millisecond {
			t.Errorf("parseStat(%q): got %v, %v, %v, want 1.75 s of its own and 420 ms of children", stat, own, children, err)
		}
	}
	for _, stat := range []string{"", "42 (x", "42 (x) S 1 2", "42 (x) S 1 2 3 4 5 6 7 8 9 10 a b 0"} {
		if got, _, err := parseStat(stat); err == nil {
			t.Errorf("parseStat(%q): got %v, want an error", stat, got)
		}
	}
}

func TestParseMemoryReadsKilobytes(t *testing.T) {
	for name, want := range map[string]int64{"VmRSS": 5 << 20, "VmHWM": 9000 << 10} {
		got, err := parseMemory("Name:\tx\nVmHWM:\t    9000 kB\nVmRSS:\t    5120 kB\n", name)
		if err != nil || got != want {
			t.Errorf("parseMemory of %s: got %d, %v, want %d", name, got, err, want)
		}
	}
	for _, status := range []string{"", "VmRSS:\tmuch kB\n"} {
		if got, err := parseMemory(status, "VmRSS"); err == nil {
			t.Errorf("parseMemory(%q): got %d, want an error", status, got)
		}
	}
}

func TestPercentileIsAValueThatWasMeasured(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, tt := range []struct {
		sorted []int
		p      float64
		want   int
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
		{[]int{7}, 99, 7},
		{[]int{1, 2, 3}, 50, 2},
		{nil, 50, 0},
	} {
		if got := percentile(tt.sorted, tt.p); got != tt.want {
			t.Errorf("percentile of %d values at %v: got %d, want %d", len(tt.sorted), tt.p, got, tt.want)
		}
	}
}

func TestSpreadTakesTheMiddle(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1}, spread{2.5, 1, 4}},
		{nil, spread{}},
	} {
		if got := spreadOf(tt.values); got != tt.want {
			t.Errorf("spreadOf(%v): got %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestAcrossComparesRoundByRound(t *testing.T) {
	r := &report{series: map[string][]sample{
		"limit": {{ops: 1, cpu: 100}, {ops: 1, cpu: 400}},
		"ours":  {{ops: 2, cpu: 400}, {ops: 2, cpu: 1600}},
	}}
	got, ok := r.across("limit", "ours", sample.cpuMicros)
	if want := (spread{0.5, 0.5, 0.5}); !ok || got != want {
		t.Errorf("across: got %v, %v, want %v", got, ok, want)
	}
	if _, ok := r.across("absent", "ours", sample.cpuMicros); ok {
		t.Error("across: a ratio to what was not measured")
	}
}

func TestGoalsAreJudgedByTheirMedian(t *testing.T) {
	r := &report{series: map[string][]sample{
		"ours": {{bytes: 2}, {bytes: 10}, {bytes: 10}},
		"peer": {{bytes: 4}, {bytes: 30}, {bytes: 80}}, // 2, 3 and 8 times ours
		"rest": {{bytes: 1}, {bytes: 5}, {bytes: 10}},  // 0.5, 0.5 and 1 times ours
	}}
	for _, tt := range []struct {
		peer        string
		sense       sense
		first, goal float64
		want        verdict
	}{
		{"peer", least, 3, 4, metFirst},
		{"peer", least, 2, 3, metGoal},
		{"peer", least, 3.1, 4, missed},
		{"rest", most, 2, 1, metFirst},
		{"rest", most, 1.9, 1, missed},
		{"", most, 10, 10, metGoal},
		{"", most, 9, 5, missed},
	} {
		g := goal{ours: "ours", peer: tt.peer, by: sample.amount, sense: tt.sense, first: tt.first, goal: tt.goal}
		o, ok := g.judge(r)
		if !ok || o.Verdict != tt.want {
			t.Errorf("against %q, gate %v, goal %v: got %q of %v, want %q", tt.peer, tt.first, tt.goal, o.Verdict, o.Value, tt.want)
		}
	}
	for _, g := range []goal{{ours: "absent", by: sample.amount}, {ours: "ours", peer: "absent", by: sample.amount}, {ours: "absent", peer: "peer", by: sample.amount}} {
		if o, ok := g.judge(r); ok {
			t.Errorf("judge: got %+v about what was not measured", o)
		}
	}
}

// TestGoalsAreAboutLinesOfTheReport finds a goal that a renamed line has silenced.
func TestGoalsAreAboutLinesOfTheReport(t *testing.T) {
	known := []string{"", "flood_lost", "scale_failed"} // counts, which are no lines
	for _, l := range lines() {
		known = append(known, l.name)
	}
	for _, g := range goals() {
		if !slices.Contains(known, g.ours) || !slices.Contains(known, g.peer) {
			t.Errorf("goal %q compares %q with %q", g.text, g.ours, g.peer)
		}
	}
}

// TestAPeerThatCannotBeBuiltIsNamed holds what the report says then, and that nothing is
// left that a later run would take for the program.
func TestAPeerThatCannotBeBuiltIsNamed(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("GOPROXY", "off")
	s := source{"nothing", "example.com/nothing", "v1.0.0"}
	b := &bench{opts: options{build: true}, report: &report{mu: &sync.Mutex{}}}
	if program := b.peerProgram(t.Context(), s); program != "" || s.installed() != "" {
		t.Errorf("peerProgram: got %q, installed %q", program, s.installed())
	}
	if note := strings.Join(b.report.Notes, "\n"); !strings.Contains(note, "go install example.com/nothing@v1.0.0") {
		t.Errorf("the report does not name the command that failed: %s", note)
	}
}

func TestParseFlagsRefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-only", "nothing"}, {"-rounds", "-1"}, {"-rounds", "1000"}, {"extra"}, {"-none"}} {
		if _, err := parseFlags(args, io.Discard); err == nil {
			t.Errorf("parseFlags(%q): got no error", args)
		}
	}
	o, err := parseFlags([]string{"-quick", "-only", "ocsp,renew"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ocsp", "renew"}; !cmp.Equal(o.only, want) || o.rounds != 1 || o.size != quickSize() {
		t.Errorf("parseFlags: got %+v", o)
	}
}

// TestBenchmarksAreReadByBenchstat holds the lines against the format of Go's benchmarks
// (golang.org/design/14313-benchmark-format).
func TestBenchmarksAreReadByBenchstat(t *testing.T) {
	r := &report{Database: "sqlite", Revision: "v1", Machine: machine{CPU: "one"}, series: map[string][]sample{}}
	for range 2 {
		r.add(
			sample{name: "connect_first", ops: 100, wall: time.Second, cpu: time.Second / 2, p50: 3 * time.Millisecond, p99: 9 * time.Millisecond},
			sample{name: "revoke_answer", ops: 10, alone: true, p50: 5 * time.Millisecond},
			sample{name: "memory_under_load", bytes: 4096},
		)
	}
	var got []string
	form := regexp.MustCompile(`^Benchmark[A-Z]\w* [1-9]\d*( \d+ [a-z0-9/-]+)+$`)
	for line := range strings.Lines(string(r.benchmarks())) {
		line = strings.TrimSuffix(line, "\n")
		if key, _, ok := strings.Cut(line, ": "); ok && key == strings.ToLower(key) {
			continue
		}
		if !form.MatchString(line) {
			t.Errorf("%q is no line of a benchmark", line)
		}
		got = append(got, line)
	}
	first, answer, memory := "BenchmarkConnectFirst 100 10000000 ns/op 5000000 cpu-ns/op 3000000 p50-ns 9000000 p99-ns", "BenchmarkRevokeAnswer 10 5000000 ns/op 5000000 p50-ns", "BenchmarkMemoryUnderLoad 1 0 ns/op 4096 bytes"
	if diff := cmp.Diff([]string{first, first, answer, answer, memory, memory}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWorstSecondIsNotThatOfTheWholeRun(t *testing.T) {
	var all []asked
	for i := range 300 { // one of a hundred a second for three seconds
		took := time.Millisecond
		if i >= 100 && i < 105 {
			took = 50 * time.Millisecond
		}
		all = append(all, asked{At: time.Duration(i) * 10 * time.Millisecond, Took: took})
	}
	s := answers("x", all)
	if s.p50 != time.Millisecond || s.second != 50*time.Millisecond || s.ops != 300 {
		t.Errorf("answers: got %+v", s)
	}
	for i := range 5 {
		all[100+i].Took = time.Millisecond
	}
	all[150].Took = time.Second // one of a hundred does not make a second bad
	if s := answers("x", all); s.second >= time.Second {
		t.Errorf("answers: got the worst second at %v", s.second)
	}
}

// TestFilledDatabaseIsTheServersOwn holds what fill writes against the program: the log is
// right, the rows are those that were asked for, and devices enroll beside them.
func TestFilledDatabaseIsTheServersOwn(t *testing.T) {
	b, err := newBench(t.Context(), options{size: tinySize(), rounds: 1, only: []string{"full"}, server: serverProgram(t)})
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	b.opts.size.fill = filling{devices: 150, certificates: 180, revoked: 20, events: 5000}
	for _, on := range []fullOn{fullOnSQLite(), fullOnPostgres()} {
		t.Run(on.what, func(t *testing.T) {
			if on.postgres {
				storetest.Need(t)
			}
			f, err := b.fillDatabase(t.Context(), on)
			if err == nil {
				err = f.start(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			checkFilled(t, f, b.opts.size.fill)
		})
	}
}

func checkFilled(t *testing.T, f *filled, size filling) {
	t.Helper()
	ctx, admin := t.Context(), f.server.admin
	v, err := admin.VerifyLog(ctx)
	if err != nil || !v.Intact || v.Events < int64(size.events) {
		t.Errorf("the log of the filled database: got %+v, %v", v, err)
	}
	counts := map[string]int{}
	for d, err := range admin.Devices(ctx, api.DeviceFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(d.ID, "filled-") {
			counts["devices"]++
		}
	}
	for c, err := range admin.Certificates(ctx, api.CertificateFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(c.Device, "filled-") {
			counts[c.State]++
		}
	}
	want := map[string]int{"devices": size.devices, "active": size.devices, "superseded": size.certificates - size.devices - size.revoked, "revoked": size.revoked}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	devices, err := f.newcomers(ctx, 2, f.token)
	if err != nil {
		t.Fatalf("a device enrolls at it: %v", err)
	}
	kit.Eventually(t, "the revoked certificates on the list", func() bool {
		res, err := http.Get(devices[0].cert.CRLDistributionPoints[0]) //nolint:noctx // a test
		if err != nil {
			return false
		}
		defer func() { _ = res.Body.Close() }()
		der, err := io.ReadAll(res.Body)
		if err != nil {
			return false
		}
		list, err := x509.ParseRevocationList(der)
		return err == nil && len(list.RevokedCertificateEntries) == size.revoked
	})
}
