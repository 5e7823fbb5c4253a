package sdk_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
)

func TestFactoryTellsABrokenAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		lines  int
		broken bool
	}{
		"whole":     {`{"item":"a","serial":"01"}` + "\n" + `{"report":{"granted":1,"again":0,"refused":0,"took_ms":1}}` + "\n", 2, false},
		"no report": {`{"item":"a","serial":"01"}` + "\n", 1, true},
		"empty":     {"", 0, true},
		"too long":  {strings.Repeat("x", 300<<10), 0, true},
	} {
		a, asked := answers(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, c.answer)
		})
		var lines int
		var failed error
		for _, err := range a.Factory(t.Context(), "default", "idevid", strings.NewReader(`{"item":"a","csr":"b"}`)) {
			if err != nil {
				failed = err
				continue
			}
			lines++
		}
		_, unreachable := errors.AsType[*sdk.Unreachable](failed)
		if lines != c.lines || unreachable != c.broken {
			t.Errorf("%s: got %d lines and %v, want %d", name, lines, failed, c.lines)
		}
		if want := "POST /api/v1/factory/default/certificates?profile=idevid"; (*asked)[0] != want {
			t.Errorf("%s: asked %s, want %s", name, (*asked)[0], want)
		}
	}
}

func TestPendingIsNoSuccess(t *testing.T) {
	a, _ := answers(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", api.ProblemType)
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"code":"pending","detail":"it waits","retry_after":60}`)
	})
	_, err := a.Device(t.Context(), "pump-1")
	e, ok := errors.AsType[*countersign.Error](err)
	if !ok || e.Code != countersign.Pending || e.RetryAfter != time.Minute {
		t.Errorf("got %v, want pending for a minute", err)
	}
}
