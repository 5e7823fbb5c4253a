package respond

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxDigestRules and maxDigestAlerts bound a digest.
	maxDigestRules  = 20
	maxDigestAlerts = 10
	// maxWaiting bounds what waits for one channel, some 10 MB; maxAge how long: what is
	// older than a day is on the list of alerts anyway.
	maxWaiting = 5_000
	maxAge     = 24 * time.Hour
	// maxShown findings, and twice as many lines, go into a notice: the last ones. The
	// alert has the others.
	maxShown = 5
	// longestPause between attempts: a channel that is back gets its news within it.
	longestPause = 15 * time.Minute
	// sendTurn after a process began an attempt, it is taken for dead.
	sendTurn = time.Minute
	// digestID begins the id of the digest that still gathers.
	digestID = "digest-"
)

// announceLast is announce for an alert whose last finding determines the response.
func (t *taking) announceLast(ctx context.Context, news string, a *Alert) error {
	if len(a.Evidence) == 0 {
		return nil
	}
	acts, err := t.acts(ctx, a.Evidence[len(a.Evidence)-1])
	if err != nil {
		return err
	}
	return t.announce(ctx, news, a, acts)
}

// announce queues a notice for each channel that wants the alert.
func (t *taking) announce(ctx context.Context, news string, a *Alert, acts []countersign.Mitigation) error {
	for _, c := range t.channels {
		if !c.wants(a, acts) {
			continue
		}
		waiting, err := store.Count(ctx, t.tx, `SELECT COUNT(*) FROM notification WHERE channel = $1`, c.Name)
		if err != nil {
			return fmt.Errorf("count notifications: %w", err)
		}
		if waiting >= maxWaiting {
			t.tx.AfterCommit(func() { t.observe("notification", c.Name, "dropped") })
			continue
		}
		if t.sent[c] >= c.room(t.now) {
			err = t.gather(ctx, c, a)
		} else {
			t.sent[c]++
			shape := t.Shape(a, true)
			shape.Evidence, shape.Timeline = tail(shape.Evidence, maxShown), tail(shape.Timeline, 2*maxShown)
			err = t.post(ctx, c, a.ID, t.now, api.Notice{ID: newID(), Kind: news, At: t.now, Host: t.Host, Alert: &shape})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func tail[T any](list []T, n int) []T { return list[max(len(list)-n, 0):] }

// post queues a notice, over the one with its id.
func (t *taking) post(ctx context.Context, c *channel, alert string, due time.Time, n api.Notice) error {
	body, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode notice: %w", err)
	}
	_, err = t.tx.Exec(ctx, `INSERT INTO notification (id, channel, alert, body, attempts, next_at, made_at, error)
		VALUES ($1, $2, $3, $4, 0, $5, $6, '') ON CONFLICT (id) DO UPDATE SET body = excluded.body`,
		n.ID, c.Name, alert, string(body), store.Micros(due), store.Micros(t.now))
	if err != nil {
		return fmt.Errorf("queue notice for %s: %w", c.Name, err)
	}
	return nil
}

// gather adds an alert to the digest of a channel, and makes one if none gathers.
func (t *taking) gather(ctx context.Context, c *channel, a *Alert) error {
	id := digestID + c.Name
	n := api.Notice{
		ID: id, Kind: NewsDigest, At: t.now, Host: t.Host,
		Digest: &api.Digest{Since: t.now, BySeverity: map[string]int64{}, ByRule: map[string]int64{}},
	}
	var body string
	err := t.tx.QueryRow(ctx, `SELECT body FROM notification WHERE id = $1`, id).Scan(&body)
	if err == nil {
		err = json.Unmarshal([]byte(body), &n)
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read digest: %w", store.Wrap(err))
	}
	g := n.Digest
	g.Notices++
	g.BySeverity[string(a.Severity)]++
	rule := a.Rule
	if _, known := g.ByRule[rule]; !known && len(g.ByRule) >= maxDigestRules {
		rule = "other"
	}
	g.ByRule[rule]++
	if len(g.Alerts) < maxDigestAlerts && !slices.Contains(g.Alerts, a.ID) {
		g.Alerts = append(g.Alerts, a.ID)
	}
	return t.post(ctx, c, "", t.now.Add(digestAfter), n)
}
