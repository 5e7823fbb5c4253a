package est

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const (
	// minPoll keeps a server that names no time, or none to speak of, from being
	// asked without pause.
	minPoll = time.Second
	// maxPoll keeps a slip in a server's Retry-After from silencing a device for
	// good.
	maxPoll = 24 * time.Hour
)

// Await calls ask, one of the Client's methods with its arguments, until the
// answer is another than 202 (RFC 7030, 4.2.3), and returns that. It waits between
// calls as long as the server says. Once the waits would exceed most, it returns
// the last 202, an [*Error].
//
//	cert, err := est.Await(ctx, time.Hour, func(ctx context.Context) (*x509.Certificate, error) {
//		return client.SimpleEnroll(ctx, "pumps", csr, token)
//	})
func Await[T any](ctx context.Context, most time.Duration, ask func(context.Context) (T, error)) (T, error) {
	for {
		answer, err := ask(ctx)
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Status != http.StatusAccepted {
			return answer, err
		}
		wait := min(max(e.RetryAfter, minPoll), maxPoll)
		if most -= wait; most < 0 {
			return answer, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return answer, fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-timer.C:
		}
	}
}
