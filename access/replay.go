package access

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// maxReplayed bounds the acts that a replay lists; all are counted.
const maxReplayed = 500

// Replay is what a draft would have decided of late.
type Replay struct {
	Acts       int       // different ones that were looked at
	Since      time.Time // of the oldest; zero without any
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
	Times            int       // as often as it is in the sample
	Decision         PolicyDecision
}

// Replay holds a draft against the sample of what was decided for a fleet, each
// act of a device once, by the answer that it got last and the tags that the
// device has now.
func (p *Policies) Replay(ctx context.Context, fleet string, draft *policy.Policy) (Replay, error) {
	rows, err := p.decisions(ctx, fleet)
	if err != nil {
		return Replay{}, err
	}
	f := facts{}
	if draft.SpeaksOf("device.tags.") {
		var devices []string
		seen := map[string]bool{}
		for _, r := range rows {
			if !seen[r.device] {
				seen[r.device] = true
				devices = append(devices, r.device)
			}
		}
		if f, err = p.facts(ctx, devices, nil); err != nil {
			return Replay{}, err
		}
	}
	return replay(draft, rows, f), nil
}

func replay(draft *policy.Policy, rows []sampled, f facts) (out Replay) {
	at := map[string]int{} // of an act in rows
	var acts []Replayed
	for _, r := range rows { // the newest first
		out.Since = r.at
		key := strings.Join([]string{r.device, r.action, r.topic}, "\x00")
		i, again := at[key]
		if again {
			acts[i].Times++
			continue
		}
		at[key] = len(acts)
		subject := f.subject(countersign.Session{Device: r.device, Fleet: r.fleet, ClientID: r.client, Scope: strings.Fields(r.scope)})
		subject.CN = r.cn
		acts = append(acts, Replayed{
			Device: r.device, ClientID: r.client, Action: r.action, Topic: r.topic, Was: r.allowed, At: r.at, Times: 1,
			Decision: draft.Explain(subject, policy.Action(r.action), r.topic),
		})
	}
	out.Acts = len(acts)
	for _, a := range acts {
		switch {
		case a.Was == a.Decision.Allowed:
			continue
		case a.Was:
			out.NowDenied++
		default:
			out.NowAllowed++
		}
		if len(out.Changes) < maxReplayed {
			out.Changes = append(out.Changes, a)
		}
	}
	return out
}

// decisions reads the sample of a fleet, the newest first.
func (p *Policies) decisions(ctx context.Context, fleet string) (list []sampled, err error) {
	rows, err := p.DB.Query(ctx, `SELECT device, client_id, cn, scope, action, topic, allowed, at FROM policy_decision
		WHERE fleet = $1 ORDER BY id DESC LIMIT $2`, fleet, maxDecisions)
	if err != nil {
		return nil, fmt.Errorf("couldn't read the sample of decisions: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		r := sampled{fleet: fleet}
		var at int64
		if err := rows.Scan(&r.device, &r.client, &r.cn, &r.scope, &r.action, &r.topic, &r.allowed, &at); err != nil {
			return nil, fmt.Errorf("couldn't read the sample of decisions: %w", store.Wrap(err))
		}
		r.at = store.Time(at)
		list = append(list, r)
	}
	return list, store.Wrap(rows.Err())
}
