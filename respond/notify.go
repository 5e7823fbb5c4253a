package respond

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/store"
)

// The news that channels are sent.
const (
	NewsOpened  = "opened"
	NewsChanged = "changed" // its severity rose, or it goes on after its snooze
	NewsFailed  = "failed"  // a mitigation failed: a person must act
	NewsDigest  = "digest"  // many at once
	NewsTest    = "test"
)

const (
	// maxPerMinute notices go out one by one; what comes beyond is gathered for
	// digestAfter into one. An eleventh mail in the same minute is not read.
	maxPerMinute = 10
	digestAfter  = time.Minute
	// maxDigestRules and maxDigestAlerts bound a digest.
	maxDigestRules  = 20
	maxDigestAlerts = 10
	// maxWaiting bounds what waits for one channel, some 10 MB; maxAge how long: what is
	// older than a day is on the list of alerts anyway.
	maxWaiting = 5_000
	maxAge     = 24 * time.Hour
	// maxTold findings, and twice as many lines, go into a notice: the last ones. The
	// alert has the others.
	maxTold = 5
	// longestPause between attempts: a channel that is back gets its news within it.
	longestPause = 15 * time.Minute
	// failingAfter attempts in a row a channel counts as failing and an event says so.
	failingAfter = 3
	// sendTime bounds one attempt, and sendTurn is when a process that made one is
	// taken for dead.
	sendTime = 20 * time.Second
	sendTurn = time.Minute
	// digestID begins the id of the digest that still gathers.
	digestID = "digest-"
)

// channel is a configured channel with what this node knows of it.
type channel struct {
	config.Channel
	due chan struct{}

	mu        sync.Mutex
	recent    []time.Time // when notices were made, the last maxPerMinute
	failures  int         // attempts in a row
	lastError string
	delivered time.Time
}

func newChannel(c config.Channel) *channel { return &channel{Channel: c, due: make(chan struct{}, 1)} }

// paced takes down that n notices were made.
func (c *channel) paced(now time.Time, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range min(n, maxPerMinute) {
		c.recent = append(c.recent, now)
	}
	if over := len(c.recent) - maxPerMinute; over > 0 {
		c.recent = slices.Delete(c.recent, 0, over)
	}
}

// room says how many more notices may go out one by one now.
func (c *channel) room(now time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := maxPerMinute
	for _, at := range c.recent {
		if now.Sub(at) < time.Minute {
			n--
		}
	}
	return n
}

// wants reports whether the channel is notified of an alert.
func (c *channel) wants(a *Alert, acts []countersign.Mitigation) bool {
	if len(c.Fleets) > 0 && !slices.Contains(c.Fleets, a.Fleet) {
		return false
	}
	return slices.Contains(acts, countersign.Mitigation(c.Kind)) ||
		c.Severity != "" && a.Severity.Rank() >= countersign.Severity(c.Severity).Rank()
}

// tellAll is tell for an alert whose last finding determines the response.
func (t *taking) tellAll(ctx context.Context, news string, a *Alert) error {
	if len(a.Evidence) == 0 {
		return nil
	}
	acts, err := t.acts(ctx, a.Evidence[len(a.Evidence)-1])
	if err != nil {
		return err
	}
	return t.tell(ctx, news, a, acts)
}

// tell queues a notice for each channel that wants the alert.
func (t *taking) tell(ctx context.Context, news string, a *Alert, acts []countersign.Mitigation) error {
	for _, c := range t.channels {
		if !c.wants(a, acts) {
			continue
		}
		var waiting int
		if err := t.tx.QueryRow(ctx, `SELECT COUNT(*) FROM notification WHERE channel = $1`, c.Name).Scan(&waiting); err != nil {
			return fmt.Errorf("count notifications: %w", store.Wrap(err))
		}
		if waiting >= maxWaiting {
			t.tx.AfterCommit(func() { t.observe(Outcome{"notification", c.Name, "dropped"}) })
			continue
		}
		var err error
		if t.sent[c] >= c.room(t.now) {
			err = t.gather(ctx, c, a)
		} else {
			t.sent[c]++
			shape := t.Shape(a, true)
			shape.Evidence, shape.Timeline = last(shape.Evidence, maxTold), last(shape.Timeline, 2*maxTold)
			err = t.post(ctx, c, a.ID, api.Notice{ID: newID(), Kind: news, At: t.now, Host: t.Host, Alert: &shape})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func last[T any](list []T, n int) []T { return list[max(len(list)-n, 0):] }

func (t *taking) post(ctx context.Context, c *channel, alert string, n api.Notice) error {
	body, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode notice: %w", err)
	}
	_, err = t.tx.Exec(ctx, `INSERT INTO notification (id, channel, alert, body, attempts, next_at, made_at, error)
		VALUES ($1, $2, $3, $4, 0, $5, $5, '')`, n.ID, c.Name, alert, string(body), store.Micros(t.now))
	if err != nil {
		return fmt.Errorf("queue notice for %s: %w", c.Name, err)
	}
	return nil
}

// gather adds an alert to the digest of a channel, and makes one where none gathers.
func (t *taking) gather(ctx context.Context, c *channel, a *Alert) error {
	id := digestID + c.Name
	n := api.Notice{
		ID: id, Kind: NewsDigest, At: t.now, Host: t.Host,
		Digest: &api.Digest{Since: t.now, BySeverity: map[string]int64{}, ByRule: map[string]int64{}},
	}
	var body string
	err := t.tx.QueryRow(ctx, `SELECT body FROM notification WHERE id = $1`, id).Scan(&body)
	made := errors.Is(err, sql.ErrNoRows)
	if err != nil && !made {
		return fmt.Errorf("read digest: %w", store.Wrap(err))
	}
	if !made {
		if err := json.Unmarshal([]byte(body), &n); err != nil {
			return fmt.Errorf("decode digest: %w", err)
		}
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
	text, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode digest: %w", err)
	}
	_, err = t.tx.Exec(ctx, `INSERT INTO notification (id, channel, alert, body, attempts, next_at, made_at, error)
		VALUES ($1, $2, '', $3, 0, $4, $5, '') ON CONFLICT (id) DO UPDATE SET body = excluded.body`,
		id, c.Name, string(text), store.Micros(t.now.Add(digestAfter)), store.Micros(t.now))
	if err != nil {
		return fmt.Errorf("save digest: %w", err)
	}
	return nil
}
