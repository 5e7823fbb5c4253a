// Package simulate plays a fleet of devices, honest and stolen ones, against a
// server that runs, and reports what the server noticed, how fast, and what it took
// for an attack that was none. The devices are real ones to the server: they
// enroll, connect over mutual TLS and publish.
//
// It works in a fleet that it makes for itself, with devices and source addresses
// (127.0.0.0/8) of its own, and takes its devices out of service in the end.
package simulate

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/simulate/device"
)

// Prefix marks the fleets and devices of simulations. Nothing else is touched.
const Prefix = "sim-"

const (
	// MaxDevices bounds the honest devices: each is a session, in this process too.
	MaxDevices = 5000
	// MinDuration is enough for the stories without waiting times.
	MinDuration = 20 * time.Second
	// workers is how many devices enroll or retire at once.
	workers = 8
	// certificateLife is that of the devices of the story offline: the shortest that a
	// profile may have.
	certificateLife = 5 * time.Minute
	// grace is how long findings are waited for once the last story has ended. The
	// detectors look at the clock every ten seconds.
	grace = 15 * time.Second
	// cleanTime bounds the cleaning up, also after an interrupt.
	cleanTime = 2 * time.Minute
)

// Options say what is played.
type Options struct {
	Admin     *sdk.Admin
	Endpoints api.Endpoints
	Roots     *x509.CertPool
	Devices   int // honest ones
	Duration  time.Duration
	Stories   []string // of Stories; empty: all
	Fleet     string   // must begin with Prefix and not exist; empty: a new name
	Seed      uint64   // the same one plays the same, as far as time allows
	Keep      bool     // leave the devices in service
	// Progress reports what is done, because a simulation takes minutes.
	Progress func(format string, args ...any)
	Now      func() time.Time
}

// Report is what came of it.
type Report struct {
	Fleet    string        `json:"fleet"`
	Seed     uint64        `json:"seed"`
	Devices  int           `json:"devices"`
	Duration string        `json:"duration"`
	Stories  []StoryReport `json:"stories"`
	Steady   *SteadyReport `json:"steady,omitempty"`
	Herd     *HerdReport   `json:"herd,omitempty"`
	// FalseAlarms are findings about honest devices and their addresses, severity
	// info left out: that is help, and counted in Hints.
	FalseAlarms []FindingReport `json:"false_alarms"`
	Hints       int             `json:"hints"`
	Kept        bool            `json:"kept"`
}

// StoryReport is what came of one story.
type StoryReport struct {
	Name     string            `json:"name"`
	What     string            `json:"what"`
	Skipped  string            `json:"skipped,omitempty"`
	Error    string            `json:"error,omitempty"`
	Expected []ExpectedFinding `json:"expected,omitempty"`
	// Unharmed and Attacked count the devices that went on working under the attack.
	Unharmed int `json:"unharmed,omitempty"`
	Attacked int `json:"attacked,omitempty"`
}

// ExpectedFinding is a rule that a story has to set off, once for each subject.
type ExpectedFinding struct {
	Rule     string  `json:"rule"`
	Subjects int     `json:"subjects"`
	Found    int     `json:"found"`
	P50      float64 `json:"p50_seconds"` // from the first act of the story to the finding
	Max      float64 `json:"max_seconds"`
}

// SteadyReport is what the honest devices did.
type SteadyReport struct {
	Devices    int   `json:"devices"`
	Messages   int64 `json:"messages"`
	Reconnects int64 `json:"reconnects"` // after lines that broke, power cuts, roaming
	Renewals   int64 `json:"renewals"`
	Refused    int64 `json:"refused"` // connections that did not come about at first
}

// HerdReport is how fast all came back at once.
type HerdReport struct {
	Devices int     `json:"devices"`
	Back    int     `json:"back"`
	P50     float64 `json:"p50_seconds"`
	P99     float64 `json:"p99_seconds"`
	Max     float64 `json:"max_seconds"`
}

// FindingReport is one finding.
type FindingReport struct {
	At      time.Time `json:"at"`
	Rule    string    `json:"rule"`
	Subject string    `json:"subject"`
	Summary string    `json:"summary"`
}

// Failed reports whether a story was not detected in full, an honest device was
// harmed, or an alarm was false.
func (r *Report) Failed() bool {
	for _, s := range r.Stories {
		if s.Error != "" || s.Unharmed < s.Attacked {
			return true
		}
		for _, e := range s.Expected {
			if e.Found < e.Subjects {
				return true
			}
		}
	}
	return len(r.FalseAlarms) > 0 || r.Herd != nil && r.Herd.Back < r.Herd.Devices
}

// run is one simulation.
type run struct {
	Options
	id     string // of this run, in the names of its devices
	net    int    // second octet of its addresses
	broker device.Broker
	tokens map[string]string // by fleet
	hit    string            // the fleet of those that are attacked
	away   string            // the fleet of the story offline
	random *rand.Rand
	began  time.Time

	devices []*player // the honest ones
	herd    *HerdReport

	messages, reconnects, renewals, refused atomic.Int64

	mu     sync.Mutex
	made   []string // ids of all devices
	tales  []*tale
	honest map[string]bool // devices and addresses
}

// tale is a story that is being played.
type tale struct {
	StoryReport
	expect []*expectation
}

// Run plays. The error says that it could not; what the server missed is in the
// report.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	r, err := newRun(o)
	if err != nil {
		return nil, err
	}
	if err := r.found(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if !o.Keep {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
			defer cancel()
			err = errors.Join(err, r.clean(clean))
		}
	}()
	o.Progress("fleet %s: %d devices enroll", r.Fleet, o.Devices)
	if err := r.enrollAll(ctx); err != nil {
		return nil, err
	}
	o.Progress("they connect, and %d stories begin", len(r.Stories))
	if err := r.play(ctx); err != nil {
		return nil, err
	}
	o.Progress("the last findings are waited for")
	if err := r.await(ctx); err != nil {
		return nil, err
	}
	return r.report(ctx)
}

func newRun(o Options) (*run, error) {
	switch {
	case o.Devices < 1 || o.Devices > MaxDevices:
		return nil, countersign.Errorf(countersign.BadRequest, "the number of devices is not between 1 and %d", MaxDevices)
	case o.Duration < MinDuration:
		return nil, countersign.Errorf(countersign.BadRequest, "the duration is under %s", MinDuration)
	case o.Fleet != "" && !strings.HasPrefix(o.Fleet, Prefix):
		return nil, countersign.Errorf(countersign.BadRequest, "the fleet %s is not marked for simulations", o.Fleet).
			WithNext("a simulation makes a fleet of its own, whose name begins with " + Prefix)
	}
	for _, name := range o.Stories {
		if !slices.ContainsFunc(stories(), func(s story) bool { return s.name == name }) {
			return nil, countersign.Errorf(countersign.BadRequest, "there is no story %q", name).WithNext("choose from " + strings.Join(StoryNames(), ", "))
		}
	}
	if len(o.Stories) == 0 {
		o.Stories = StoryNames()
	}
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	b, err := brokerOf(o)
	if err != nil {
		return nil, err
	}
	r := &run{Options: o, broker: b, random: rand.New(rand.NewPCG(o.Seed, 1)), began: o.Now(), tokens: map[string]string{}, honest: map[string]bool{}} //nolint:gosec // it chooses pauses, no keys
	r.id = fmt.Sprintf("%06x", r.began.UnixMilli()&0xffffff)
	r.net = 64 + int(r.began.Unix()%128) // blocks of an earlier run must not hit this one
	r.Fleet = cmp.Or(o.Fleet, Prefix+r.id)
	r.hit, r.away = r.Fleet+"-hit", r.Fleet+"-away"
	return r, nil
}

// found makes the fleets, with a token for each: one for the honest, one for those
// that are attacked, and one whose certificates are short.
func (r *run) found(ctx context.Context) error {
	for f, err := range r.Admin.Fleets(ctx) {
		if err != nil {
			return err
		}
		if f.Name == r.Fleet {
			return countersign.Errorf(countersign.Conflict, "the fleet %s exists", r.Fleet).WithNext("leave --fleet out: a new one is made")
		}
	}
	kinds := []string{string(countersign.AccessCertificate), string(countersign.AccessSecret), string(countersign.AccessSAS)}
	fleets := map[string]api.PutFleet{r.Fleet: {AccessKinds: &kinds}, r.hit: {AccessKinds: &kinds}}
	if r.plays("offline") {
		profile, err := r.shortLived(ctx)
		if err != nil {
			return err
		}
		fleets[r.away] = api.PutFleet{Profile: &profile, Rules: &api.Rules{Recovery: &api.Recovery{MaxAge: "24h", MaxTimes: 3}}}
	}
	for name, put := range fleets {
		if _, err := r.Admin.PutFleet(ctx, name, put); err != nil {
			return err
		}
		issued, err := r.Admin.CreateToken(ctx, api.NewToken{Fleet: name, Uses: 2 * MaxDevices, Label: "simulation"})
		if err != nil {
			return err
		}
		r.tokens[name] = issued.Secret
	}
	return nil
}

// shortLived makes a profile like that of other devices, for as short as may be.
func (r *run) shortLived(ctx context.Context) (name string, err error) {
	like, err := r.Admin.Fleet(ctx, countersign.DefaultFleet)
	if err != nil {
		return "", err
	}
	p, err := r.Admin.Profile(ctx, like.Profile)
	if err != nil {
		return "", err
	}
	p.Name, p.Description, p.ValiditySeconds = r.Fleet+"-short", "of a simulation", int64(certificateLife/time.Second)
	_, err = r.Admin.PutProfile(ctx, *p)
	return p.Name, err
}

func (r *run) plays(name string) bool { return slices.Contains(r.Stories, name) }

// enrollAll enrolls the honest devices. Ten have one address.
func (r *run) enrollAll(ctx context.Context) error {
	r.devices = make([]*player, r.Devices)
	err := device.Each(ctx, workers, r.devices, func(ctx context.Context, i int, _ *player) (err error) {
		r.devices[i], err = r.enroll(ctx, r.Fleet, fmt.Sprintf("steady-%04d", i), r.address(1+i/2500, 1+i/10%250))
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range r.devices {
		r.honest[d.Device()], r.honest[d.From] = true, true
	}
	return nil
}

// enroll enrolls one device.
func (r *run) enroll(ctx context.Context, fleet, name, from string) (*player, error) {
	id := Prefix + r.id + "-" + name
	identity, err := sdk.Enroll(ctx, sdk.Enrollment{Server: r.Endpoints.Enroll, Roots: r.Roots, Fleet: fleet, Device: id, Token: r.tokens[fleet]})
	if err != nil {
		return nil, err
	}
	r.note(id)
	return &player{Client: device.Client{Identity: identity, Broker: r.broker, From: from}, run: r}, nil
}

func (r *run) note(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made = append(r.made, id)
}

// address is one of this run's own.
func (r *run) address(part, host int) string { return fmt.Sprintf("127.%d.%d.%d", r.net, part, host) }

// abroad is one in another network than all of these.
func (r *run) abroad(host int) string { return fmt.Sprintf("127.%d.7.%d", r.otherNet(), host) }

func (r *run) otherNet() int { return r.net ^ 1 }

// play runs the honest devices for the whole time, and the stories beside them.
func (r *run) play(ctx context.Context) error {
	until, cancel := context.WithTimeout(ctx, r.Duration)
	defer cancel()
	var all sync.WaitGroup
	if r.plays("steady") || r.plays("herd") {
		for i, d := range r.devices {
			seed := r.random.Uint64()
			all.Go(func() { d.live(until, rand.New(rand.NewPCG(seed, uint64(i)))) }) //nolint:gosec // as above
		}
	}
	for _, s := range stories() {
		if !r.plays(s.name) || s.play == nil {
			continue
		}
		t := &tale{StoryReport: StoryReport{Name: s.name, What: s.what}}
		r.tales = append(r.tales, t)
		if s.needs > r.Duration {
			t.Skipped = "it needs a duration of " + s.needs.String()
			continue
		}
		all.Go(func() {
			if err := s.play(until, r, t); err != nil && until.Err() == nil {
				t.Error = err.Error()
			}
			r.Progress("story %s is over after %s", s.name, r.Now().Sub(r.began).Round(time.Second))
		})
	}
	all.Wait()
	return ctx.Err()
}

// clean takes the devices out of service, ends the blocks of our addresses and
// closes the alerts about ours.
func (r *run) clean(ctx context.Context) error {
	r.Progress("%d devices are retired", len(r.made))
	act := api.Act{Note: "the simulation is over"}
	err := device.Each(ctx, workers, r.made, func(ctx context.Context, _ int, id string) error {
		_, err := r.Admin.Retire(ctx, id, act)
		if countersign.CodeOf(err) == countersign.NotFound { // it never came to be
			return nil
		}
		return err
	})
	for b, e := range r.Admin.Blocks(ctx) {
		if e != nil {
			return errors.Join(err, e)
		}
		if addr, _, _ := strings.Cut(b.Network, "/"); r.ours(addr) {
			_, e := r.Admin.Unblock(ctx, b.Network)
			err = errors.Join(err, e)
		}
	}
	for a, e := range r.Admin.Alerts(ctx, api.AlertFilter{State: "live"}) {
		if e != nil {
			return errors.Join(err, e)
		}
		if strings.HasPrefix(a.Device, Prefix+r.id) || r.ours(addressOf(a.Subject)) || a.Fleet == r.Fleet || a.Fleet == r.hit || a.Fleet == r.away {
			_, e := r.Admin.CloseAlert(ctx, a.ID, api.AlertClose{Resolution: "not_an_issue", Note: "of the simulation " + r.Fleet})
			err = errors.Join(err, e)
		}
	}
	return err
}
