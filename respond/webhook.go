package respond

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
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
)

const (
	// signatureHeader is "t=<Unix seconds>,v1=<hex HMAC-SHA-256 of seconds, dot, body>",
	// as of the webhook that is asked before an enrollment. The time is that of the
	// attempt, so that a receiver can refuse what was recorded and sent again.
	signatureHeader = "Countersign-Signature"
	// deliveryHeader is the notice's id, the same in each attempt.
	deliveryHeader = "Countersign-Delivery"
)

// sendWebhook posts the notice. Any 2xx accepts it. Redirects are not followed: only
// the URL that the operator named receives it.
func sendWebhook(ctx context.Context, c config.Channel, now time.Time, n api.Notice) error {
	endpoint, err := c.Endpoint()
	if err != nil {
		return err
	}
	secret, err := c.Secret.Resolve()
	if err != nil {
		return err
	}
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL cannot be used") // the error would show it
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "countersign")
	req.Header.Set(deliveryHeader, n.ID)
	req.Header.Set(signatureHeader, signature([]byte(secret), now, body))
	client, err := webClient(c)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the URL may hold a secret
		}
		return fmt.Errorf("couldn't post: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // the status is all that counts
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the webhook answered %d", resp.StatusCode)
	}
	return nil
}

func webClient(c config.Channel) (*http.Client, error) {
	tlsConfig, err := tlsFor(c, "")
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout:   sendTime,
		Transport: &http.Transport{TLSClientConfig: tlsConfig, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the webhook redirects, which is not followed")
		},
	}, nil
}

func signature(secret []byte, now time.Time, body []byte) string {
	m := hmac.New(sha256.New, secret)
	_, _ = fmt.Fprintf(m, "%d.%s", now.Unix(), body) // a hash accepts every write
	return fmt.Sprintf("t=%d,v1=%s", now.Unix(), hex.EncodeToString(m.Sum(nil)))
}
