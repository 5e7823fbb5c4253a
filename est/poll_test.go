package est

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/test/kit"
)

// pend makes the desk answer Pending to the next n requests.
func (d *desk) pend(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = n
}

func (d *desk) checkPending() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending == 0 {
		return nil
	}
	d.pending--
	return countersign.Errorf(countersign.Pending, "an operator has to approve this").WithNext("repeat the request").WithRetry(time.Second)
}

func TestPendingIs202WithRetryAfterAndReason(t *testing.T) {
	s := startServer(t)
	s.pend(2)
	csr := kit.CSR(t, kit.Key(t), "pump-7")
	for range 2 {
		res := post(t, s, csr, http.Header{"Authorization": {"Bearer " + goodToken}})
		text := body(t, res)
		if res.StatusCode != http.StatusAccepted || res.Header.Get("Retry-After") != "1" || text != "an operator has to approve this: repeat the request.\n" {
			t.Errorf("got %d, Retry-After %q, %q, want 202, 1 and the reason", res.StatusCode, res.Header.Get("Retry-After"), text)
		}
	}
	if res := post(t, s, csr, http.Header{"Authorization": {"Bearer " + goodToken}}); res.StatusCode != http.StatusOK {
		t.Errorf("after approval: got %d, want 200", res.StatusCode)
	}
	if log := s.log.String(); !strings.Contains(log, "awaits approval") || strings.Contains(log, "refused") {
		t.Errorf("log: got %s, want no refusal", log)
	}
}

func TestAwaitRepeatsUntilGranted(t *testing.T) {
	s := startServer(t)
	key := kit.Key(t)
	csr := kit.CSR(t, key, "pump-7")
	s.pend(2)
	c := s.client(t, nil, nil)
	cert, err := Await(t.Context(), time.Minute, func(ctx context.Context) (*x509.Certificate, error) {
		return c.SimpleEnroll(ctx, "", csr, goodToken)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.pend(1)
	c = s.client(t, cert, key)
	if _, err = Await(t.Context(), time.Minute, func(ctx context.Context) (*x509.Certificate, error) {
		return c.SimpleReenroll(ctx, "", csr)
	}); err != nil {
		t.Error(err)
	}
}

func TestAwaitKeepsToItsBounds(t *testing.T) {
	for name, tt := range map[string]struct {
		retryAfter, most, want time.Duration // want: time spent
		calls                  int
	}{
		"as the server says":      {retryAfter: time.Minute, most: 150 * time.Second, want: 2 * time.Minute, calls: 3},
		"no time named":           {most: 3 * time.Second, want: 3 * time.Second, calls: 4},
		"no wait allowed":         {retryAfter: time.Second, calls: 1},
		"a year of Retry-After":   {retryAfter: 365 * 24 * time.Hour, most: 25 * time.Hour, want: 24 * time.Hour, calls: 2},
		"less than a second left": {retryAfter: time.Second, most: time.Second / 2, calls: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			began, calls := time.Now(), 0
			_, err := Await(t.Context(), tt.most, func(context.Context) (int, error) {
				calls++
				return 0, &Error{Status: http.StatusAccepted, RetryAfter: tt.retryAfter}
			})
			if spent := time.Since(began); StatusOf(err) != http.StatusAccepted || calls != tt.calls || spent != tt.want {
				t.Errorf("%s: got %v after %d calls and %v, want 202 after %d and %v", name, err, calls, spent, tt.calls, tt.want)
			}
		})
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := Await(ctx, time.Hour*24, func(context.Context) (int, error) {
			return 0, &Error{Status: http.StatusAccepted, RetryAfter: time.Hour}
		})
		if !errors.Is(err, context.DeadlineExceeded) || StatusOf(err) != http.StatusAccepted {
			t.Errorf("got %v, want 202 and the deadline", err)
		}
	})
}

func TestStrongSwanPollsUntilApproved(t *testing.T) {
	pki, s := kit.Program(t, "pki"), startServer(t)
	d := newDevice(t)
	s.pend(2)
	argv := []string{pki, "--est", "--url", s.url, "--cacert", s.roots, "--interval", "1", "--maxpolltime", "30"}
	der, said := d.run(t, append(argv, "--in", "req.der", "--userpass", "pump:"+goodToken)...)
	cert := d.checkCert(t, s, der, said)
	writePEM(t, d.file("cert.pem"), "CERTIFICATE", cert.Raw)
	if n := strings.Count(s.log.String(), "awaits approval"); n != 2 {
		t.Errorf("enroll: got %d answers of 202, want 2\n%s", n, said)
	}

	next := newDevice(t)
	s.pend(2)
	der, said = d.run(t, append(argv, "--in", next.file("req.der"), "--cert", "cert.pem", "--key", "key.pem")...)
	d.checkCert(t, s, der, said)
	if n := strings.Count(s.log.String(), "awaits approval"); n != 4 {
		t.Errorf("reenroll: got %d answers of 202, want 4\n%s", n, said)
	}
}
