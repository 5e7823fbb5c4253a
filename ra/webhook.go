package ra

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// hookTimeout is the time that AWS allows such a hook.
	hookTimeout = 5 * time.Second
	// maxHookAnswer bounds what it may answer: a yes or a no, and some names.
	maxHookAnswer = 64 << 10
	// breakAfter failures in a row the hook is left alone for breakFor: devices get
	// their refusal at once instead of after five seconds each.
	breakAfter = 5
	breakFor   = 30 * time.Second
	// maxHooks bounds the breakers kept: a fleet has one hook.
	maxHooks = 256
)

// hooks asks webhooks, each behind a circuit breaker.
type hooks struct {
	mu       sync.Mutex
	client   *http.Client
	breakers map[string]*breaker // by fleet and URL
}

type breaker struct {
	failures int
	until    time.Time
}

// hookRequest has the shape of AWS IoT's pre-provisioning hook, and ours beside it.
type hookRequest struct {
	ClaimCertificateID string            `json:"claimCertificateId,omitempty"`
	CertificateID      string            `json:"certificateId"` // of the key: no certificate exists yet
	TemplateArn        string            `json:"templateArn"`
	ClientID           string            `json:"clientId"`
	Parameters         map[string]string `json:"parameters"`
	CSR                string            `json:"certificateSigningRequest"`
}

// hookCall is a question to the webhook of a fleet.
type hookCall struct {
	fleet   string
	webhook *countersign.Webhook
	secret  func(reference string) ([]byte, error)
	now     time.Time
	request hookRequest
}

// ask asks the fleet's webhook. Anything but an explicit yes is a no. A status of 4xx is
// an answer; what opens the breaker is a hook that cannot be reached, is late, or fails.
func (h *hooks) ask(ctx context.Context, c hookCall) error {
	key := c.fleet + " " + c.webhook.URL
	if !h.closed(key, c.now) {
		return countersign.Errorf(countersign.Unavailable, "the webhook of fleet %s has failed %d times in a row", c.fleet, breakAfter).
			WithNext("try again later").WithRetry(breakFor)
	}
	secret, err := c.secret(c.webhook.Secret)
	if err != nil {
		return countersign.Errorf(countersign.Unavailable, "the secret of the webhook of fleet %s cannot be read", c.fleet).WithRetry(hookTimeout).WithCause(err)
	}
	allowed, err := h.post(ctx, c, secret)
	answer, answered := errors.AsType[*countersign.Error](err)
	if answered {
		err = nil
	}
	if ctx.Err() == nil { // else it is the device that went, not the hook that failed
		h.count(key, c.now, err)
	}
	switch {
	case answered:
		return answer
	case err != nil:
		return countersign.Errorf(countersign.Unavailable, "the webhook of fleet %s did not answer", c.fleet).
			WithNext("try again later").WithRetry(hookTimeout).WithCause(err)
	case !allowed:
		return countersign.Errorf(countersign.NotAllowed, "the webhook of fleet %s refuses the device", c.fleet).WithNext("ask the operator")
	}
	return nil
}

func (h *hooks) post(ctx context.Context, c hookCall, secret []byte) (bool, error) {
	body, err := json.Marshal(c.request)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.webhook.URL, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Countersign-Signature", signature(secret, c.now, body))
	resp, err := h.http().Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxHookAnswer+1))
	if err != nil {
		return false, err
	}
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout:
		return false, countersign.Errorf(countersign.RateLimited, "the webhook of fleet %s is busy: it answered %s", c.fleet, resp.Status).WithNext("try again later").WithRetry(breakFor)
	case code >= 400 && code < 500: // an answer about this device, and no fault of the hook
		return false, countersign.Errorf(countersign.NotAllowed, "the webhook of fleet %s refused the device: it answered %s", c.fleet, resp.Status).WithNext("ask the operator")
	case code != http.StatusOK:
		return false, fmt.Errorf("the webhook answered %s", resp.Status)
	}
	if len(text) > maxHookAnswer {
		return false, fmt.Errorf("the webhook's answer is larger than %d octets", maxHookAnswer)
	}
	var answer map[string]any // a struct would take the name in any case
	if err := json.Unmarshal(text, &answer); err != nil {
		return false, fmt.Errorf("read the webhook's answer: %w", err)
	}
	return answer["allowProvisioning"] == true, nil
}

// signature is "t=<Unix seconds>,v1=<hex HMAC-SHA256 of seconds, dot, body>".
func signature(secret []byte, now time.Time, body []byte) string {
	m := hmac.New(sha256.New, secret)
	_, _ = fmt.Fprintf(m, "%d.%s", now.Unix(), body) // a hash takes all that it is given
	return fmt.Sprintf("t=%d,v1=%s", now.Unix(), hex.EncodeToString(m.Sum(nil)))
}

func (h *hooks) closed(url string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.breakers[url]
	if b == nil || b.failures < breakAfter {
		return true
	}
	if !now.After(b.until) {
		return false
	}
	b.until = now.Add(hookTimeout) // one request tries for all
	return true
}

func (h *hooks) count(url string, now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		delete(h.breakers, url)
		return
	}
	if h.breakers == nil || len(h.breakers) >= maxHooks {
		h.breakers = map[string]*breaker{}
	}
	b := h.breakers[url]
	if b == nil {
		b = &breaker{}
		h.breakers[url] = b
	}
	if b.failures++; b.failures >= breakAfter {
		b.until = now.Add(breakFor) // then one try; if it fails too, again
	}
}

// http is a client that follows no redirect: a yes must come from the URL that was configured.
func (h *hooks) http() *http.Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client == nil {
		h.client = &http.Client{
			Timeout: hookTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return errors.New("the webhook redirects, which is not followed")
			},
		}
	}
	return h.client
}

// checkWebhook refuses a webhook that cannot be asked: by https, or http on loopback.
func checkWebhook(w *countersign.Webhook, secretOf func(string) ([]byte, error)) error {
	u, err := url.Parse(w.URL)
	loopback := err == nil && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		return countersign.Errorf(countersign.BadRequest, "the webhook's URL is neither https nor http on loopback")
	}
	secret, err := secretOf(w.Secret)
	if err != nil || len(secret) < 16 {
		return countersign.Errorf(countersign.BadRequest, "the webhook's secret is not a file: or env: reference to at least 16 octets").WithCause(err)
	}
	return nil
}
