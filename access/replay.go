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

// Trial is what a draft would do if it were applied.
type Trial struct {
	Replay
	Sessions   int            // of those given, that would be cut
	Statements []PolicyChange // how it differs from what is in force
}

// Try tells what a draft would do to a fleet, and to its live sessions. Its tests
// need not hold.
func (p *Policies) Try(ctx context.Context, fleet, source string, sessions []countersign.Session) (Trial, error) {
	r := CheckPolicy(source)
	if len(r.Problems) > 0 {
		return Trial{}, unreadablePolicy(r.Problems)
	}
	if _, err := p.Present(ctx, fleet); err != nil { // there is such a fleet
		return Trial{}, err
	}
	in, err := p.Of(ctx, fleet)
	if err != nil {
		return Trial{}, err
	}
	t := Trial{Statements: policy.Diff(in.Policy, r.Policy)}
	if t.Replay, err = p.Replay(ctx, fleet, r.Policy); err != nil {
		return t, err
	}
	losers, err := p.Losers(ctx, r.Policy, OfFleet(sessions, fleet))
	t.Sessions = len(losers)
	return t, err
}

// CountLosers is how many of the sessions lose something under a source.
func (p *Policies) CountLosers(ctx context.Context, source string, sessions []countersign.Session) (int, error) {
	now, err := ReadPolicy(source)
	if err != nil {
		return 0, err
	}
	losers, err := p.Losers(ctx, now, sessions)
	return len(losers), err
}

// PolicyQuestion asks what a client may do.
type PolicyQuestion struct {
	Fleet    string   // of a guest or an app; a device has its own
	Device   string   // one of this,
	Guest    string   // this,
	App      string   // and this, the name of an operator
	Scope    []string // of an app
	ClientID string   // empty: the client's own name
	Action   string
	Topic    string // or filter; a client identifier for connect
	Source   string // a draft; empty asks the policy in force
}

// PolicyAnswer says who was meant, what was decided, and by which version; -1 is a
// draft.
type PolicyAnswer struct {
	Fleet    string
	Version  int64
	Decision PolicyDecision
}

// draftVersion stands for what has no number yet.
const draftVersion = -1

// Explain answers a question by the record as it is now.
func (p *Policies) Explain(ctx context.Context, q PolicyQuestion) (PolicyAnswer, error) {
	s, err := p.subjectOf(ctx, q)
	if err != nil {
		return PolicyAnswer{}, err
	}
	if q.ClientID != "" {
		s.ClientID = q.ClientID
	}
	in := InForce{Version: draftVersion}
	if q.Source == "" {
		in, err = p.Of(ctx, s.Fleet)
	} else if r := CheckPolicy(q.Source); len(r.Problems) > 0 {
		err = unreadablePolicy(r.Problems)
	} else {
		in.Policy = r.Policy
	}
	if err != nil {
		return PolicyAnswer{}, err
	}
	a := PolicyAnswer{Fleet: s.Fleet, Version: in.Version, Decision: in.Policy.Explain(s, policy.Action(q.Action), q.Topic)}
	if s.Kind != policy.Devices || !a.Decision.Allowed {
		return a, nil
	}
	client := s.ClientID
	if q.Action == string(policy.Connect) && q.Topic != "" {
		client = q.Topic
	}
	if _, why := checkClientID(client, s.Device); why != "" { // no policy can widen it
		a.Decision = PolicyDecision{Why: why}
	}
	return a, nil
}

func (p *Policies) subjectOf(ctx context.Context, q PolicyQuestion) (policy.Subject, error) {
	name := policy.Subject{Fleet: q.Fleet, Scope: q.Scope}
	switch {
	case q.Device != "" && q.Guest == "" && q.App == "":
		s, err := p.Subject(ctx, q.Device)
		if err == nil && q.Fleet != "" && q.Fleet != s.Fleet {
			err = countersign.Errorf(countersign.BadRequest, "device %s is of fleet %s", q.Device, s.Fleet).WithNext("leave the fleet out")
		}
		return s, err
	case q.Guest != "" && q.Device == "" && q.App == "":
		name.Kind, name.Device, name.ClientID = policy.Guests, "guest/"+q.Guest, q.Guest
	case q.App != "" && q.Device == "" && q.Guest == "":
		name.Kind, name.Device, name.ClientID = policy.Apps, "operator/"+q.App, q.App
	default:
		return name, countersign.Errorf(countersign.BadRequest, "it is not said who asks").WithNext("name one device, guest or app")
	}
	_, err := p.Present(ctx, q.Fleet) // there is such a fleet
	return name, err
}
