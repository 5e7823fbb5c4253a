package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/google/go-cmp/cmp"
)

// answers serves one handler; the paths and queries that came are kept.
func answers(t *testing.T, h http.HandlerFunc) (*sdk.Admin, *[]string) {
	t.Helper()
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.EscapedPath()+"?"+r.URL.RawQuery)
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return sdk.Remote(s.URL+"/", "csop_x", s.Client()), &asked
}

func TestListWalksPages(t *testing.T) {
	const total = 5
	a, asked := answers(t, func(w http.ResponseWriter, r *http.Request) {
		from, _ := strconv.Atoi(r.URL.Query().Get("after"))
		var p api.Page[api.Device]
		for i := from; i < min(from+2, total); i++ {
			p.Items = append(p.Items, api.Device{ID: fmt.Sprint("d", i)})
		}
		if from+2 < total {
			p.Next = strconv.Itoa(from + 2)
		}
		_ = json.NewEncoder(w).Encode(p)
	})
	a.PageSize = 2
	devices := a.Devices(t.Context(), api.DeviceFilter{State: "active"})
	for range 2 { // a list can be walked again
		*asked = nil
		var got []string
		for d, err := range devices {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, d.ID)
		}
		if diff := cmp.Diff([]string{"d0", "d1", "d2", "d3", "d4"}, got); diff != "" {
			t.Errorf("Devices (-want +got):\n%s", diff)
		}
		want := []string{
			"GET /api/v1/devices?limit=2&state=active",
			"GET /api/v1/devices?after=2&limit=2&state=active",
			"GET /api/v1/devices?after=4&limit=2&state=active",
		}
		if diff := cmp.Diff(want, *asked); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
	}
	*asked = nil
	for _, err := range devices {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if len(*asked) != 1 {
		t.Errorf("a list that is left at once: got %d requests, want 1", len(*asked))
	}
}

func TestFiltersBecomeQueries(t *testing.T) {
	a, asked := answers(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"items":[]}`)) })
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for e, err := range a.Events(t.Context(), api.EventFilter{Type: "device.created", Since: at}, api.Order{Order: "desc"}) {
		t.Errorf("Events: got %+v, %v, want none", e, err)
	}
	want := "GET /api/v1/events?limit=1000&order=desc&since=2026-01-02T03%3A04%3A05.000006Z&type=device.created"
	if (*asked)[0] != want {
		t.Errorf("request: got %s, want %s", (*asked)[0], want)
	}
}

func TestPathsEscapeIDs(t *testing.T) {
	a, asked := answers(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
	if _, err := a.Device(t.Context(), "../fleets/x?y"); err != nil {
		t.Fatal(err)
	}
	if want := "GET /api/v1/devices/..%2Ffleets%2Fx%3Fy?"; (*asked)[0] != want {
		t.Errorf("request: got %s, want %s", (*asked)[0], want)
	}
}

func TestUnblockNamesTheNetworkInOneSegment(t *testing.T) {
	a, asked := answers(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
	if _, err := a.Unblock(t.Context(), "2001:db8::/48"); err != nil {
		t.Fatal(err)
	}
	if want := "DELETE /api/v1/blocks/2001:db8::_48?"; (*asked)[0] != want {
		t.Errorf("request: got %s, want %s", (*asked)[0], want)
	}
}

func TestTokenAndBodyAreSent(t *testing.T) {
	a, _ := answers(t, func(w http.ResponseWriter, r *http.Request) {
		var n api.NewToken
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil || r.Header.Get("Authorization") != "Bearer csop_x" || n.Uses != 3 {
			t.Errorf("request: got %+v, %v, authorization %q", n, err, r.Header.Get("Authorization"))
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(api.IssuedToken{Secret: "cset_x"})
	})
	got, err := a.CreateToken(t.Context(), api.NewToken{Uses: 3})
	if err != nil || got.Secret != "cset_x" {
		t.Errorf("CreateToken: got %+v, %v", got, err)
	}
}

func TestErrorsKeepTheProblem(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   countersign.Code
	}{
		"ours":         {409, `{"status":409,"code":"conflict","detail":"taken","next":"another","request_id":"r1"}`, countersign.Conflict},
		"a proxy's":    {502, `<html>`, countersign.Unavailable},
		"another JSON": {404, `{"error":"x"}`, countersign.NotFound},
	} {
		a, _ := answers(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(api.RequestIDHeader, "r1")
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		})
		_, err := a.Device(t.Context(), "x")
		e, ok := errors.AsType[*sdk.Error](err)
		if !ok || e.Status != c.status || e.RequestID != "r1" || e.Detail == "" || countersign.CodeOf(err) != c.want {
			t.Errorf("%s: got %#v, want status %d and code %s", name, err, c.status, c.want)
		}
		for _, err := range a.Devices(t.Context(), api.DeviceFilter{}) {
			if countersign.CodeOf(err) != c.want {
				t.Errorf("%s in a list: got %v, want code %s", name, err, c.want)
			}
		}
	}
}

func TestUnreachableIsToldApart(t *testing.T) {
	a := sdk.Local(filepath.Join(t.TempDir(), "no.sock"))
	_, err := a.Version(t.Context())
	if _, ok := errors.AsType[*sdk.Unreachable](err); !ok {
		t.Errorf("no socket: got %v, want *sdk.Unreachable", err)
	}
	slow, _ := answers(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = slow.Version(ctx)
	if _, ok := errors.AsType[*sdk.Unreachable](err); !ok || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: got %v, want *sdk.Unreachable for the deadline", err)
	}
}

func TestStrangeAnswersAreErrors(t *testing.T) {
	for name, body := range map[string]string{"no JSON": "hello", "too much": `{"version":"` + string(make([]byte, 17<<20)) + `"}`} {
		a, _ := answers(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
		if v, err := a.Version(t.Context()); err == nil {
			t.Errorf("%s: got %+v, want an error", name, v)
		}
	}
}
