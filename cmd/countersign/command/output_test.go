package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// noon is when these tests happen.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

type outputs struct{ out, err bytes.Buffer }

func newApp(format string) (*Env, *outputs) {
	var o outputs
	return &Env{
		In: strings.NewReader("y\n"), Out: &o.out, Err: &o.err, output: format,
		Getenv: func(string) string { return "" }, Now: func() time.Time { return noon },
	}, &o
}

func devices(ids ...string) iter.Seq2[api.Device, error] {
	return func(yield func(api.Device, error) bool) {
		for _, id := range ids {
			if !yield(api.Device{ID: id, Fleet: "default", State: "active"}, nil) {
				return
			}
		}
	}
}

func TestStrangersCannotDriveTheTerminal(t *testing.T) {
	for _, format := range []string{formatTable, formatName, formatJSON, formatYAML} {
		env, o := newApp(format)
		if err := list(env, devices("a\x1b[31m\u202e\nb"), 0, deviceView(env)); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(o.out.String(), "\x1b\u202e") {
			t.Errorf("-o %s: a control character came through: %q", format, o.out.String())
		}
	}
	env, o := newApp(formatTable)
	env.explain(errors.New("bad \x1b]0;x\x07 thing\nand more"))
	if strings.ContainsAny(o.err.String(), "\x1b\x07") {
		t.Errorf("explain: an escape came through: %q", o.err.String())
	}
}

func TestYAMLSaysWhatJSONSays(t *testing.T) {
	in := map[string]any{
		"text": "plain", "words": "two words", "yes": "no", "number": "12", "time": "2026-01-02T03:04:05Z", "odd": "a\x1b\u202e\"\\\n- b: #c",
		"empty": "", "n": 12, "big": 1234567890123, "b": true, "null": nil, "none": []any{}, "nothing": map[string]any{},
		"list": []any{"x", 1, []any{"y", []any{}}, map[string]any{"a": "b", "c": map[string]any{"d": []any{"e"}}}},
		"map":  map[string]any{"k: k": map[string]any{"v": false}},
	}
	want, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeYAML(&b, in); err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := yaml.Unmarshal(b.Bytes(), &out); err != nil {
		t.Fatalf("the YAML can't be read: %v\n%s", err, &b)
	}
	got, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("YAML: got\n%s\nwant\n%s\nin\n%s", got, want, &b)
	}
}

func TestListStopsAtLimit(t *testing.T) {
	env, o := newApp(formatName)
	if err := list(env, devices("a", "b", "c"), 2, deviceView(env)); err != nil {
		t.Fatal(err)
	}
	if got := o.out.String(); got != "a\nb\n" {
		t.Errorf("list of 2: got %q, want a and b", got)
	}
}

func TestLongTableHasOneHead(t *testing.T) {
	ids := make([]string, 2*chunk+10)
	for i := range ids {
		ids[i] = fmt.Sprint("pump-", i)
	}
	env, o := newApp(formatTable)
	if err := list(env, devices(ids...), 0, deviceView(env)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(o.out.String()), "\n")
	if len(lines) != len(ids)+1 || strings.Count(o.out.String(), "DEVICE") != 1 {
		t.Errorf("table of %d: got %d lines and %d heads", len(ids), len(lines), strings.Count(o.out.String(), "DEVICE"))
	}
}

func TestNewestComesLast(t *testing.T) {
	var got []string
	for d, err := range newest(devices("c", "b", "a"), 2) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, d.ID)
	}
	if diff := cmp.Diff([]string{"b", "c"}, got); diff != "" {
		t.Errorf("newest 2 (-want +got):\n%s", diff)
	}
}

func TestSpansReadWell(t *testing.T) {
	env, _ := newApp(formatTable)
	for want, got := range map[string]string{
		"59s":             span(59 * time.Second),
		"59m":             span(time.Hour - 1),
		"47h":             span(48*time.Hour - 1),
		"2d":              span(48 * time.Hour),
		"729d":            span(729 * 24 * time.Hour),
		"2y":              span(730 * 24 * time.Hour),
		"5m ago":          env.ago(noon.Add(-5 * time.Minute)),
		"30d":             env.until(noon.Add(30 * 24 * time.Hour)),
		"3h ago":          env.until(noon.Add(-3 * time.Hour)),
		"4F:1A:0B":        colons("4f1a0b"),
		"01:02:03:04:...": short("0102030405"),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := env.until(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)); got != "never" {
		t.Errorf("no well-defined expiration: got %q, want never", got)
	}
}

func TestSinceReadsLengthsAndTimes(t *testing.T) {
	env, _ := newApp(formatTable)
	for in, want := range map[string]time.Time{
		"": {}, "2h": noon.Add(-2 * time.Hour), "7d": noon.Add(-7 * 24 * time.Hour), "2026-01-31T12:00:00Z": time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC),
	} {
		if got, err := env.since("--since", in); err != nil || !got.Equal(want) {
			t.Errorf("since %q: got %s, %v, want %s", in, got, err, want)
		}
	}
	if _, err := env.since("--since", "yesterday"); exitCode(err) != exitUsage {
		t.Errorf("since yesterday: got %v, want a usage error", err)
	}
}

func TestExitCodesFollowTheTable(t *testing.T) {
	refusal := func(c countersign.Code) error { return &sdk.Error{Problem: api.Problem{Code: string(c), Detail: "no"}} }
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("x"), exitFailed},
		{usagef("x"), exitUsage},
		{failed(exitPartly), exitPartly},
		{refusal(countersign.BadRequest), exitUsage},
		{refusal(countersign.NotFound), exitNotFound},
		{refusal(countersign.BadCredential), exitNotAllowed},
		{refusal(countersign.NotAllowed), exitNotAllowed},
		{refusal(countersign.Conflict), exitRefused},
		{refusal(countersign.DeviceGone), exitRefused},
		{refusal(countersign.Unavailable), exitUnreachable},
		{refusal(countersign.Internal), exitFailed},
		{&sdk.Unreachable{Err: errors.New("x")}, exitUnreachable},
		{&sdk.Unreachable{Err: fmt.Errorf("dial: %w", fs.ErrPermission)}, exitNotAllowed},
		{countersign.Errorf(countersign.BadRequest, "x"), exitUsage},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%T %v: got exit code %d, want %d", c.err, c.err, got, c.want)
		}
	}
}

func TestConfirmAsksNobodyWhoIsNotThere(t *testing.T) {
	env, _ := newApp(formatTable)
	if err := env.confirm(false, "Sure?"); exitCode(err) != exitUsage { // "y" waits on standard input, which is no terminal
		t.Errorf("confirm without a terminal: got %v, want a usage error", err)
	}
	if err := env.confirm(true, "Sure?"); err != nil {
		t.Errorf("confirm with --yes: got %v, want nil", err)
	}
}

func TestColorFollowsFlagThenEnvironment(t *testing.T) {
	for _, c := range []struct {
		flag string
		env  map[string]string
		want bool
	}{
		{"auto", nil, false}, // a buffer is no terminal
		{"always", map[string]string{"NO_COLOR": "1"}, true},
		{"never", map[string]string{"CLICOLOR_FORCE": "1"}, false},
		{"auto", map[string]string{"CLICOLOR_FORCE": "1"}, true},
		{"auto", map[string]string{"CLICOLOR_FORCE": "0"}, false},
		{"auto", map[string]string{"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, false},
	} {
		env, _ := newApp(formatTable)
		env.color = c.flag
		env.Getenv = func(k string) string { return c.env[k] }
		if got := env.wantsColor(env.Out); got != c.want {
			t.Errorf("--color %s with %v: got %v, want %v", c.flag, c.env, got, c.want)
		}
	}
}

func TestTablesFitTheTerminal(t *testing.T) {
	rows := [][]string{
		{"DEVICE", "ADDRESS", "REASON"},
		{"pump-with-a-long-name-0001", "[2001:db8::1234:5678]:40404", "certificate revoked (keyCompromise) 3 h ago"},
	}
	for _, tt := range []struct {
		width int
		ascii bool
		want  string
	}{
		{0, false, "pump-with-a-long-name-0001  [2001:db8::1234:5678]:40404  certificate revoked (keyCompromise) 3 h ago"},
		{60, false, "pump-with-a-long-name-0001  [2001:db8::123…  certificate re…"},
		{60, true, "pump-with-a-long-name-0001  [2001:db8::1...  certificate ..."},
		{20, false, "pump-with-a-long-name-0001  [2001:d…  certifi…"}, // the name stays whole
	} {
		var out bytes.Buffer
		if err := writeTable(printer{w: &out, width: tt.width, ascii: tt.ascii}, rows); err != nil {
			t.Fatal(err)
		}
		if got := strings.Split(out.String(), "\n")[1]; got != tt.want {
			t.Errorf("width %d: got\n%s, want\n%s", tt.width, got, tt.want)
		}
	}
}

// TestViewsWriteFieldsInTheirForms checks each form of a column, and that a column of a
// field that does not exist is a fault of the program.
func TestViewsWriteFieldsInTheirForms(t *testing.T) {
	type inner struct {
		Line int `json:"line"`
	}
	type object struct {
		ID    string            `json:"id"`
		Hex   string            `json:"hex,omitempty"`
		At    time.Time         `json:"at"`
		Never time.Time         `json:"never"`
		List  []string          `json:"list"`
		Map   map[string]string `json:"map"`
		Long  int64             `json:"long"`
		None  int64             `json:"none"`
		Is    bool              `json:"is"`
		In    inner             `json:"in"`
	}
	env, _ := newApp(formatTable)
	item := object{"a", "0aff", noon.Add(-time.Hour), time.Time{}, []string{"x", "y"}, map[string]string{"k": "v", "e": ""}, 7200, 0, true, inner{3}}
	for column, want := range map[string]string{
		"id": "a", "hex:hex": "0A:FF", "at": "1h ago", "never": "never", "past:never": "", "past:at": "1h ago", "until:at": "1h ago", "age:at": "1h",
		"clock:at": env.clock(item.At), "list": "x,y", "words:list": "x y", "list:list": "x, y", "map": "e=,k=v", "pairs:map": "k=v",
		"long": "7200", "span:long": "2h", "octets:long": "7.0 KiB", "some:long": "7200", "some:none": "", "none": "0", "yes|no:is": "yes", "|no:is": "", "in.line": "3",
	} {
		if got := viewOf[object](env, "HEAD WORDS "+column).name(item); got != want {
			t.Errorf("%s: got %q, want %q", column, got, want)
		}
	}
	v := viewOf(env, "OWN, ID id", func(object) string { return "own" })
	if got := cells(v.cols, item); got[0] != "own" || got[1] != "a" || v.name(item) != "own" {
		t.Errorf("got %q, named %q", got, v.name(item))
	}
	defer func() {
		if recover() == nil {
			t.Error("a column of a field that does not exist was accepted")
		}
	}()
	viewOf[object](env, "ID nope")
}
