package rest_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/store"
)

// plant is the house with a factory's client of it.
func plant(t *testing.T) (*house, *sdk.Admin) {
	t.Helper()
	h := newHouse(t)
	var secret string
	err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
		_, secret, err = h.Operators.Create(ctx, tx, "line-1", operator.Factory, time.Hour)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h.Handler())
	t.Cleanup(s.Close)
	return h, sdk.Remote(s.URL, secret, s.Client())
}

// line is one request of a factory.
func line(item, id string, csr []byte) string {
	return mustJSON(api.FactoryRequest{Item: item, ID: id, CSR: base64.StdEncoding.EncodeToString(csr)}) + "\n"
}

// run sends the lines and gives the results and the report.
func run(t *testing.T, a *sdk.Admin, in io.Reader) (results []api.FactoryResult, report *api.FactoryReport) {
	t.Helper()
	for l, err := range a.Factory(t.Context(), "default", "", in) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Report != nil {
			report = l.Report
			break
		}
		results = append(results, l.FactoryResult)
	}
	return results, report
}

func TestFactoryAnswersInOrderAndRefusesLineByLine(t *testing.T) {
	_, a := plant(t)
	good, other := newCSR(t, "pump-1"), newCSR(t, "pump-2")
	in := line("1", "pump-1", good) + "\n" + "{not json}\n" + line("3", "pump-9", other) + line("", "", other) +
		line("5", "", other) + line("1", "pump-1", good) + `{"item":"7","csr":"!"}` + "\n" + `{"item":"8","csr":"","x":1}`
	results, report := run(t, a, strings.NewReader(in))
	want := []string{"1 pump-1", " bad_request", "3 subject_mismatch", " bad_request", "5 pump-2", "1 pump-1", "7 bad_request", " bad_request"}
	if len(results) != len(want) {
		t.Fatalf("got %d results, want %d: %+v", len(results), len(want), results)
	}
	for i, r := range results {
		got := r.Item + " " + r.Device
		if r.Error != nil {
			got += r.Error.Code
		}
		if got != want[i] {
			t.Errorf("line %d: got %q, want %q", i, got, want[i])
		}
	}
	if results[0].Serial != results[5].Serial || strings.Count(results[0].Certificate, "BEGIN CERTIFICATE") != 2 {
		t.Errorf("the same item and key: got %s and %s, want one certificate with its chain", results[0].Serial, results[5].Serial)
	}
	if report == nil || report.Granted+report.Again != 3 || report.Refused != 5 || report.Error != nil {
		t.Errorf("report: got %+v, want 3 granted or again and 5 refused", report)
	}
	results, _ = run(t, a, strings.NewReader(line("9", "pump-1", newCSR(t, "pump-1"))))
	if len(results) != 1 || results[0].Error == nil || results[0].Error.Code != string(countersign.DeviceIsActive) {
		t.Errorf("another key for an active device: got %+v, want device_active", results)
	}
}

func TestFactoryNeedsItsRole(t *testing.T) {
	h, a := plant(t)
	for role, want := range map[operator.Role]int{operator.Operator: http.StatusForbidden, operator.Admin: http.StatusOK, operator.Factory: http.StatusOK} {
		var secret string
		err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
			_, secret, err = h.Operators.Create(ctx, tx, string(role)+"-2", role, time.Hour)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		c := &client{t: t, url: a.BaseURL + api.Base, token: secret}
		body := line("a", "", newCSR(t, "pump-"+string(role)))
		if res := c.do("POST", "/factory/default/certificate", body, nil); res.StatusCode != want {
			t.Errorf("%s, one: got %s, want %d", role, res.Status, want)
		}
		if res := c.do("POST", "/factory/default/certificates", "", nil); res.StatusCode != want && want == http.StatusForbidden {
			t.Errorf("%s, many: got %s, want %d", role, res.Status, want)
		}
	}
	for _, err := range a.Factory(t.Context(), "nope", "", strings.NewReader("")) {
		if countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("a fleet that is not there: got %v, want not_found", err)
		}
	}
}

// TestFactoryMakesNothingForAnActiveDevice asks at each route that the role may use: what
// it makes is for devices that are new, and bounded.
func TestFactoryMakesNothingForAnActiveDevice(t *testing.T) {
	h, a := plant(t)
	h.enroll(t, "pump-1")
	ctx := t.Context()
	many := api.Bounds{Uses: provision.FactoryUses + 1, TTLSeconds: 3600}
	for route, ask := range map[string]func(device string) error{
		"POST /tokens": func(device string) error { _, err := a.CreateToken(ctx, api.NewToken{Device: device}); return err },
		"POST /tokens, uses": func(string) error {
			_, err := a.CreateToken(ctx, api.NewToken{Uses: provision.FactoryUses + 1})
			return err
		},
		"POST /tokens/bulk": func(device string) error {
			_, err := a.CreateTokens(ctx, api.NewTokens{IDs: []string{device}})
			return err
		},
		"POST /claims, uses": func(string) error { _, err := a.CreateClaim(ctx, api.NewClaim{Bounds: many}); return err },
		"POST /keys":         func(device string) error { _, err := a.CreateKey(ctx, api.NewKey{Device: device}); return err },
		"POST /thumbprints": func(device string) error {
			_, err := a.CreateThumbprint(ctx, api.NewThumbprint{Device: device, Primary: strings.Repeat("ab", 32)})
			return err
		},
		"POST /tpms": func(device string) error {
			_, err := a.CreateTPM(ctx, api.NewTPM{Device: device, EKHash: fmt.Sprintf("%064x", len(device))})
			return err
		},
	} {
		if err := ask("pump-1"); countersign.CodeOf(err) != countersign.NotAllowed {
			t.Errorf("%s: got %v, want not_allowed", route, err)
		}
		if strings.HasSuffix(route, "uses") {
			continue
		}
		if err := ask("new-" + strings.ReplaceAll(route[len("POST /"):], "/", "-")); err != nil {
			t.Errorf("%s for a new device: %v", route, err)
		}
	}
}

// TestFactoryServesFleetsWithNetworks has a fleet that its devices may enroll in from one
// network alone. A factory is elsewhere, whichever of its two routes it takes.
func TestFactoryServesFleetsWithNetworks(t *testing.T) {
	h, a := plant(t)
	_, err := h.Provisioner.SaveFleet(t.Context(), "default", func(f *countersign.Fleet) {
		f.Rules.Networks = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	}, ra.By{Actor: countersign.System})
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, url: a.BaseURL + api.Base, token: a.Token}
	var one api.FactoryResult
	if res := c.do("POST", "/factory/default/certificate", line("a", "", newCSR(t, "pump-1")), &one); res.StatusCode != http.StatusOK {
		t.Errorf("one: got %s", res.Status)
	}
	results, _ := run(t, a, strings.NewReader(line("b", "", newCSR(t, "pump-2"))))
	if len(results) != 1 || results[0].Error != nil {
		t.Errorf("many: got %+v", results)
	}
	for _, device := range []string{"pump-1", "pump-2"} { // the station's address is in the log
		list, _, err := h.Events.List(t.Context(), event.Filter{Device: device, Type: countersign.CertIssued})
		if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Remote, "127.0.0.1:") {
			t.Errorf("events of %s: got %+v, %v, want one with the address of the station", device, list, err)
		}
	}
}

func TestFactoryStopsAtALineThatIsTooLong(t *testing.T) {
	_, a := plant(t)
	in := line("1", "", newCSR(t, "pump-1")) + strings.Repeat("x", api.MaxFactoryLine+1) + "\n" + line("2", "", newCSR(t, "pump-2"))
	results, report := run(t, a, strings.NewReader(in))
	if len(results) != 1 || report.Granted != 1 || report.Error == nil || report.Error.Code != string(countersign.TooLarge) {
		t.Errorf("got %d results and %+v, want 1 and too_large", len(results), report)
	}
}

// TestFactoryRunsLongAndResumes sends thousands of requests, loses the connection
// half way, and sends them all again.
func TestFactoryRunsLongAndResumes(t *testing.T) {
	total := 5000
	if testing.Short() {
		total = 500
	}
	_, a := plant(t)
	csrs := make([][]byte, total)
	for i := range csrs {
		csrs[i] = newCSR(t, fmt.Sprintf("pump-%05d", i))
	}
	send := func() io.Reader {
		r, w := io.Pipe()
		go func() {
			out := bufio.NewWriterSize(w, 512)
			for i, csr := range csrs {
				if _, err := out.WriteString(line(fmt.Sprint("item-", i), "", csr)); err != nil {
					return
				}
			}
			_ = out.Flush()
			_ = w.Close()
		}()
		return r
	}

	serials := map[string]string{}
	half := total / 2
	for l, err := range a.Factory(t.Context(), "default", "", send()) {
		if err != nil {
			t.Fatal(err)
		}
		serials[l.Item] = l.Serial
		if len(serials) == half {
			break // the connection ends here
		}
	}
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var again, n int
	for l, err := range a.Factory(t.Context(), "default", "", send()) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Report != nil {
			if l.Report.Granted+l.Report.Again != int64(total) || l.Report.Refused != 0 {
				t.Errorf("report: got %+v, want %d", l.Report, total)
			}
			break
		}
		if l.Item != fmt.Sprint("item-", n) || l.Error != nil {
			t.Fatalf("result %d: got %+v", n, l)
		}
		if l.Again {
			again++
		}
		if s, known := serials[l.Item]; known && (s != l.Serial || !l.Again) {
			t.Fatalf("%s: got serial %s, before %s", l.Item, l.Serial, s)
		}
		n++
	}
	runtime.GC()
	runtime.ReadMemStats(&now)
	if grown := int64(now.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d requests left %d MiB behind", total, grown>>20)
	}
	if n != total || again < half {
		t.Errorf("second run: got %d results, %d of them again, want %d and at least %d", n, again, total, half)
	}
}

// counted counts the lines that are read from it.
type counted struct {
	csrs  [][]byte
	lines atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n := c.lines.Load()
	if int(n) == len(c.csrs) {
		return 0, io.EOF
	}
	c.lines.Add(1)
	return copy(b, line(fmt.Sprint(n), "", c.csrs[n])), nil
}

// stuck is a client that reads nothing until it is let go.
type stuck struct {
	*httptest.ResponseRecorder
	let chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	<-s.let
	return s.ResponseRecorder.Write(b)
}

func TestFactoryReadsNoFurtherThanItsWindow(t *testing.T) {
	const window = 128
	h := newHouse(t)
	h.Local = true
	in := &counted{csrs: make([][]byte, 3*window)}
	for i := range in.csrs {
		in.csrs[i] = newCSR(t, fmt.Sprint("pump-", i))
	}
	w := &stuck{httptest.NewRecorder(), make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, api.Base+"/factory/default/certificates", in))
	}()
	last := int64(-1)
	for quiet := 0; quiet < 5; quiet++ { // until nothing moves any more
		if n := in.lines.Load(); n != last {
			last, quiet = n, 0
		}
		time.Sleep(50 * time.Millisecond)
	}
	if last < window || last > window+32 { // a worker's line, the scanner's, and what the writer's buffer took
		t.Errorf("with a client that reads nothing: read %d lines, want about %d", last, window)
	}
	close(w.let)
	<-ended
	if !strings.Contains(w.Body.String(), fmt.Sprintf(`{"report":{"granted":%d,`, len(in.csrs))) {
		t.Errorf("report: got %.200q", w.Body.String()[max(0, w.Body.Len()-200):])
	}
}

func TestFactoryRunsOverHTTP2(t *testing.T) {
	h, a := plant(t)
	s := httptest.NewUnstartedServer(h.Handler())
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	var in strings.Builder
	const total = 300
	for i := range total {
		in.WriteString(line(fmt.Sprint(i), "", newCSR(t, fmt.Sprint("pump-", i))))
	}
	results, report := run(t, sdk.Remote(s.URL, a.Token, s.Client()), strings.NewReader(in.String()))
	if len(results) != total || report == nil || report.Granted != total {
		t.Errorf("got %d results and %+v, want %d granted", len(results), report, total)
	}
}
