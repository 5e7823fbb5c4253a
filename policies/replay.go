package policies

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// maxReplayed bounds the acts that a trial lists; all are counted.
const maxReplayed = 500

// Trial is what a draft would do if it were applied: to the live sessions, and to what
// was decided of late.
type Trial struct {
	Sessions   int             // of those given, that would be cut
	Statements []policy.Change // how the draft differs from what is in force
	Acts       int             // different ones in the sample
	Since      time.Time       // of the oldest; zero without any
	NowDenied  int
	NowAllowed int
	Changes    []Replayed // the newest first, up to maxReplayed
}

// Replayed is an act on which the draft decides otherwise.
type Replayed struct {
	Device, ClientID string
	Action, Topic    string
	Was              bool
	At               time.Time // when it was decided last
	Times            int       // how often it is in the sample
	Decision         Decision
}

// Try reports what a draft would do to a fleet, and to its live sessions. Its tests
// need not pass.
func (s *Store) Try(ctx context.Context, fleet, source string, sessions []countersign.Session) (t Trial, err error) {
	draft, err := parse(source)
	if err != nil {
		return t, err
	}
	if _, err := s.Present(ctx, fleet); err != nil { // there is such a fleet
		return t, err
	}
	in, err := s.Of(ctx, fleet)
	if err != nil {
		return t, err
	}
	t.Statements = policy.Diff(in.Policy, draft)
	if err := s.replay(ctx, fleet, draft, &t); err != nil {
		return t, err
	}
	losers, err := s.Losers(ctx, draft, OfFleet(sessions, fleet))
	t.Sessions = len(losers)
	return t, err
}

// replay compares a draft with the sample of what was decided for a fleet: each act of a
// device once, with the answer that it got last and the tags that the device has now.
func (s *Store) replay(ctx context.Context, fleet string, draft *policy.Policy, t *Trial) error {
	rows, err := store.List(ctx, s.DB, scanSampled, `SELECT fleet, device, client_id, cn, scope, action, topic, allowed, at FROM policy_decision
		WHERE fleet = $1 ORDER BY id DESC LIMIT $2`, fleet, maxDecisions)
	if err != nil {
		return fmt.Errorf("couldn't read the sample of decisions: %w", err)
	}
	times := map[string]int{}
	var acts []sampled // the newest of each
	var devices []string
	for _, r := range rows {
		if times[r.key()]++; times[r.key()] == 1 {
			acts, devices = append(acts, r), append(devices, r.device)
		}
		t.Since = r.at
	}
	if !draft.SpeaksOf("device.tags.") {
		devices = nil
	}
	f, err := readFacts(ctx, s.DB, devices, nil)
	if err != nil {
		return err
	}
	t.Acts = len(acts)
	for _, r := range acts {
		subject := f.subject(countersign.Session{Device: r.device, Fleet: r.fleet, ClientID: r.client, Scope: strings.Fields(r.scope)})
		subject.CN = r.cn
		now := draft.Explain(subject, policy.Action(r.action), r.topic)
		switch {
		case r.allowed == now.Allowed:
			continue
		case r.allowed:
			t.NowDenied++
		default:
			t.NowAllowed++
		}
		if len(t.Changes) < maxReplayed {
			t.Changes = append(t.Changes, Replayed{
				Device: r.device, ClientID: r.client, Action: r.action, Topic: r.topic, Was: r.allowed, At: r.at, Times: times[r.key()], Decision: now,
			})
		}
	}
	return nil
}

// key is what makes two rows the same act.
func (r *sampled) key() string { return strings.Join([]string{r.device, r.action, r.topic}, "\x00") }

func scanSampled(row store.Row) (r sampled, err error) {
	var at int64
	err = row.Scan(&r.fleet, &r.device, &r.client, &r.cn, &r.scope, &r.action, &r.topic, &r.allowed, &at)
	r.at = store.Time(at)
	return r, err
}
