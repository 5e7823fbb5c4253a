package simulate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/simulate/device"
)

// anything is the subject of findings about the server as a whole.
const anything = "server"

// poll is how often findings are looked for once the stories are over.
const poll = time.Second

// expectation is a rule that has to find each of its subjects.
type expectation struct {
	rule string

	mu    sync.Mutex
	began map[string]time.Time // by device or address
	took  map[string]time.Duration
}

// expects has a story wait for a rule about the devices of its cast; began says of
// each when the attack began.
func (t *tale) expects(r *run, rule string, list []*player) *expectation {
	e := &expectation{rule: rule, began: map[string]time.Time{}, took: map[string]time.Duration{}}
	for _, d := range list {
		e.began[d.Device()] = r.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t.expect = append(t.expect, e)
	return e
}

func (e *expectation) begin(subject string, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.began[subject] = at
}

// note holds a finding against the expectation.
func (e *expectation) note(f api.Event) {
	if f.Data["rule"] != e.rule {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, name := range []string{f.Device, addressOf(f.Data["subject"]), f.Data["subject"]} {
		began, ok := e.began[name]
		if _, known := e.took[name]; !ok || known || f.At.Before(began) {
			continue
		}
		e.took[name] = f.At.Sub(began)
	}
}

func (e *expectation) missing() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.began) - len(e.took)
}

func (e *expectation) report() ExpectedFinding {
	e.mu.Lock()
	defer e.mu.Unlock()
	var took []time.Duration
	for _, d := range e.took {
		took = append(took, d)
	}
	f := ExpectedFinding{Rule: e.rule, Subjects: len(e.began), Found: len(e.took)}
	f.P50, _, f.Max = quantiles(took)
	return f
}

// quantiles are seconds: the median, the 99th of a hundred, the greatest.
func quantiles(took []time.Duration) (p50, p99, greatest float64) {
	if len(took) == 0 {
		return 0, 0, 0
	}
	slices.Sort(took)
	at := func(q float64) float64 { return took[int(q*float64(len(took)-1)+0.5)].Seconds() }
	return at(0.5), at(0.99), at(1)
}

// addressOf is the address of a subject such as address:192.0.2.1/32; empty for
// others.
func addressOf(subject string) string {
	network, ok := strings.CutPrefix(subject, "address:")
	if !ok {
		return ""
	}
	addr, _, _ := strings.Cut(network, "/")
	return addr
}

// ours reports whether an address is of this run.
func (r *run) ours(addr string) bool {
	return strings.HasPrefix(addr, fmt.Sprintf("127.%d.", r.net)) || strings.HasPrefix(addr, fmt.Sprintf("127.%d.", r.otherNet()))
}

// findings reads what was found since the run began.
func (r *run) findings(ctx context.Context) ([]api.Event, error) {
	var out []api.Event
	for e, err := range r.Admin.Events(ctx, api.EventFilter{Type: string(countersign.FindingRaised), Since: r.began}, api.Order{}) {
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// await waits until the detectors have found what is missing, or grace is over.
func (r *run) await(ctx context.Context) error {
	for end := r.Now().Add(grace); r.Now().Before(end); {
		found, err := r.findings(ctx)
		if err != nil {
			return err
		}
		missing := 0
		for _, t := range r.tales {
			for _, e := range t.expect {
				for _, f := range found {
					e.note(f)
				}
				missing += e.missing()
			}
		}
		if missing == 0 {
			return nil
		}
		if !wait(ctx, poll) {
			return ctx.Err()
		}
	}
	return nil
}

// report sums up.
func (r *run) report(ctx context.Context) (*Report, error) {
	found, err := r.findings(ctx)
	if err != nil {
		return nil, err
	}
	out := &Report{
		Fleet: r.Fleet, Seed: r.Seed, Devices: r.Devices, Duration: r.Duration.String(), Herd: r.herd, FalseAlarms: []FindingReport{}, Kept: r.Keep,
	}
	for _, t := range r.tales {
		for _, e := range t.expect {
			t.Expected = append(t.Expected, e.report())
		}
		out.Stories = append(out.Stories, t.StoryReport)
	}
	if r.plays("steady") || r.plays("herd") {
		out.Steady = &SteadyReport{
			Devices: r.Devices, Messages: r.messages.Load(), Reconnects: r.reconnects.Load(), Renewals: r.renewals.Load(), Refused: r.refused.Load(),
		}
	}
	for _, f := range found {
		subject := f.Data["subject"]
		if !r.honest[f.Device] && !r.honest[addressOf(subject)] && subject != "fleet:"+r.Fleet {
			continue
		}
		if f.Data["severity"] == string(countersign.SeverityInfo) {
			out.Hints++
			continue
		}
		out.FalseAlarms = append(out.FalseAlarms, FindingReport{At: f.At, Rule: f.Data["rule"], Subject: subject, Summary: f.Reason})
	}
	return out, nil
}

// recovering is the same identity at the recovery listener.
func (d *player) recovering() (*sdk.Identity, error) {
	return device.Elsewhere(d.Identity, sdk.Enrollment{Server: d.run.Endpoints.Recovery, Roots: d.run.Roots, Fleet: d.run.away})
}
