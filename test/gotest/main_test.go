package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// module writes a module with one package and moves the test into it.
func module(t *testing.T, test string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":    "module example.org/m\n\ngo 1.26.0\n",
		"m_test.go": "package m\n\nimport \"testing\"\n\n" + test,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "")
}

func TestRunReportsOutcome(t *testing.T) {
	const (
		good  = "func TestGood(t *testing.T) { t.Log(\"chatter\") }\n"
		bad   = "func TestBad(t *testing.T) { t.Log(\"got 1, want 2\"); t.Fail() }\n"
		away  = "func TestAway(t *testing.T) { t.Skip(\"no broker is installed\") }\n"
		crash = "func TestCrash(t *testing.T) { panic(\"out of cheese\") }\n"
		wrong = "func TestWrong(t *testing.T) { undefined() }\n"
	)
	for _, tt := range []struct {
		name, code, require string
		status              int
		say                 []string
		hide                string
	}{
		{name: "pass", code: good, say: []string{"ok  \texample.org/m", "1 passed, 0 failed, 0 skipped"}, hide: "chatter"},
		{
			name: "fail", code: good + bad, status: 1,
			say: []string{"--- FAIL: TestBad", "got 1, want 2", "FAIL\texample.org/m", "1 passed, 1 failed"}, hide: "chatter",
		},
		{name: "skip", code: good + away, say: []string{"ok  \t", "skipped m TestAway: no broker is installed"}},
		{name: "skip refused", code: away, require: "1", status: 1, say: []string{"no broker is installed"}},
		{name: "panic", code: crash, status: 1, say: []string{"out of cheese", "FAIL\texample.org/m"}},
		{name: "does not build", code: wrong, status: 1, say: []string{"undefined: undefined", "[build failed]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			module(t, tt.code)
			t.Setenv("COUNTERSIGN_REQUIRE_PEERS", tt.require)
			var out bytes.Buffer
			status, err := run(t.Context(), &out, []string{"./..."})
			if status != tt.status {
				t.Errorf("run: got status %d (%v), want %d; output:\n%s", status, err, tt.status, &out)
			}
			for _, want := range tt.say {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output lacks %q:\n%s", want, &out)
				}
			}
			if tt.hide != "" && strings.Contains(out.String(), tt.hide) {
				t.Errorf("output of a passing test is shown:\n%s", &out)
			}
		})
	}
}

// TestSummaryNamesTheSlowest feeds what two packages reported: subtests count with
// their test, and what is quick has no line.
func TestSummaryNamesTheSlowest(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	stream := `{"Action":"pass","Package":"x/ra","Test":"TestA/sub","Elapsed":3.5}
{"Action":"pass","Package":"x/ra","Test":"TestA","Elapsed":3.5}
{"Action":"pass","Package":"x/mqtt","Test":"TestB","Elapsed":12}
{"Action":"pass","Package":"x/mqtt","Test":"TestC","Elapsed":0.5}
`
	if err := r.read(strings.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	r.summarize()
	const want = "\nslowest tests, in seconds:\n   12.0 mqtt TestB\n    3.5 ra TestA\n\n4 passed, 0 failed, 0 skipped\n"
	if got := out.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
