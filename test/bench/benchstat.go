package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// benchmarks returns every round in the format of Go's benchmarks, which benchstat reads
// and compares: a line for each measurement, with ns/op for the answers and units of its
// own for the server's CPU, the percentiles and memory.
func (r *report) benchmarks() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "goos: %s\ngoarch: %s\ncpu: %s\nrevision: %s\ndatabase: %s\n", runtime.GOOS, runtime.GOARCH, r.Machine.CPU, r.Revision, r.Database)
	for _, l := range lines() {
		for _, s := range r.series[l.name] {
			fmt.Fprintf(&b, "Benchmark%s %d", camel(l.name), max(s.ops, 1))
			for _, f := range s.figures() {
				fmt.Fprintf(&b, " %.0f %s", f.value, f.unit)
			}
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

type figure struct {
	value float64
	unit  string
}

// figures are what a sample measured. What does not apply is left out, but ns/op, which
// every line has.
func (s sample) figures() []figure {
	each := float64(s.p50)
	if !s.alone && s.ops > 0 {
		each = float64(s.wall) / float64(s.ops)
	}
	all := []figure{{each, "ns/op"}}
	for _, f := range []figure{
		{1000 * s.cpuMicros(), "cpu-ns/op"}, {float64(s.p50), "p50-ns"}, {float64(s.p99), "p99-ns"}, {float64(s.second), "second-ns"}, {float64(s.worst), "worst-ns"}, {s.bytes, "bytes"},
	} {
		if f.value > 0 {
			all = append(all, f)
		}
	}
	return all
}

// camel writes the name of a line as that of a benchmark: ConnectFirst for connect_first.
func camel(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// saveFile writes one form of the report.
func saveFile(path string, text []byte) error {
	return os.WriteFile(path, text, 0o644) //nolint:gosec // the user names the file; it holds no secret
}
