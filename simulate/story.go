package simulate

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/simulate/device"
)

const (
	// cast is how many devices each story befalls.
	cast = 5
	// guesses are more than the ten after which an address is blocked.
	guesses = 14
	// sprayed is how many devices' names a secret is tried with.
	sprayed = 8
	// fights is how often two holders of one client id throw each other out.
	fights = 5
	// sideBySide is more than the 5 min for which two sessions of one certificate have to
	// be open to be found.
	sideBySide = certificateLife + 45*time.Second
)

// story is something that befalls devices. Those without play are lived by the
// honest devices.
type story struct {
	name, what string
	needs      time.Duration // of the run
	play       func(context.Context, *run, *tale) error
}

func stories() []story {
	return []story{
		{name: "steady", what: "honest devices publish, lose their lines, roam and renew"},
		{name: "herd", what: "all honest devices lose their lines at once and come back", play: playHerd},
		{name: "clone", what: "a stolen key is used in turn with its owner, under the same client id", play: playClone},
		{name: "twin", what: "a stolen key is used beside its owner, under another client id", needs: sideBySide + 30*time.Second, play: playTwin},
		{name: "fork", what: "a stolen certificate is renewed after its owner renewed it", play: playFork},
		{name: "brute-force", what: "one address after the other guesses the secret of one device", play: playBruteForce},
		{name: "spraying", what: "one wrong secret is tried with the names of many devices", play: playSpraying},
		{name: "clock-fault", what: "devices whose clock is wrong show signed tokens of yesterday", play: playClockFault},
		{name: "offline", what: "devices come back after their certificate has expired, and recover", needs: certificateLife + time.Minute, play: playOffline},
	}
}

// StoryNames lists the stories.
func StoryNames() []string {
	var names []string
	for _, s := range stories() {
		names = append(names, s.name)
	}
	return names
}

// victims enrolls the cast of a story.
func (r *run) victims(ctx context.Context, fleet, name string, part int) ([]*player, error) {
	list := make([]*player, cast)
	return list, each(ctx, list, func(ctx context.Context, i int, _ *player) (err error) {
		list[i], err = r.enroll(ctx, fleet, fmt.Sprintf("%s-%d", name, i), r.address(part, 1+i))
		return err
	})
}

// each does the same with every item of a cast, at the same time.
func each[T any](ctx context.Context, list []T, do func(ctx context.Context, i int, item T) error) error {
	return device.Each(ctx, len(list), list, do)
}

// visit has a device connect and leave again.
func visit(ctx context.Context, d *player) error {
	s, err := d.Connect(ctx)
	if err == nil {
		s.Leave()
	}
	return err
}

// mustRefuse tries a login that must not succeed; what says what is wrong if it does.
func (r *run) mustRefuse(ctx context.Context, l device.Login, what string) error {
	s, err := r.broker.Open(ctx, l)
	if err == nil {
		s.Leave()
		return errors.New(what)
	}
	return ctx.Err()
}

// playHerd waits for the middle of the run, cuts all lines and takes the time until
// each device has a session again.
func playHerd(ctx context.Context, r *run, _ *tale) error {
	wait(ctx, r.Duration/2)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var mu sync.Mutex
	var back []time.Duration
	var all sync.WaitGroup
	begin := r.Now()
	fallen := 0
	for _, d := range r.devices {
		s := d.Session()
		if s == nil {
			continue
		}
		fallen++
		s.Lose()
		all.Go(func() {
			for d.Session() == s && wait(ctx, 5*time.Millisecond) {
				continue
			}
			if d.Session() != s {
				mu.Lock()
				back = append(back, r.Now().Sub(begin))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	h := &HerdReport{Devices: fallen, Back: len(back)}
	h.P50, h.P99, h.Max = quantiles(back)
	r.mu.Lock()
	r.herd = h
	r.mu.Unlock()
	return nil
}

// thief is a copy of the device's key somewhere else, in another program.
func (r *run) thief(d *player, clientID string, i int) device.Login {
	config := d.TLSConfig()
	config.MaxVersion = tls.VersionTLS12
	return device.Login{From: r.abroad(1 + i), TLS: config, ClientID: clientID}
}

// playClone has owner and thief throw each other out, as their clients reconnect.
func playClone(ctx context.Context, r *run, t *tale) error {
	list, err := r.victims(ctx, r.hit, t.Name, 101)
	if err != nil {
		return err
	}
	seen := t.expects(r, "client_id_conflict", list)
	return each(ctx, list, func(ctx context.Context, i int, d *player) error {
		owner, err := d.Connect(ctx)
		if err != nil {
			return err
		}
		seen.begin(d.Device(), r.Now())
		for range fights {
			other, err := r.broker.Open(ctx, r.thief(d, d.Device(), i))
			if err != nil {
				return err
			}
			wait(ctx, 300*time.Millisecond)
			if owner, err = d.Connect(ctx); err != nil {
				return err
			}
			other.Lose()
			wait(ctx, 300*time.Millisecond)
		}
		owner.Leave()
		return nil
	})
}

// playTwin has owner and thief connected side by side.
func playTwin(ctx context.Context, r *run, t *tale) error {
	list, err := r.victims(ctx, r.hit, t.Name, 102)
	if err != nil {
		return err
	}
	seen := t.expects(r, "shared_certificate", list)
	return each(ctx, list, func(ctx context.Context, i int, d *player) error {
		owner, err := d.Connect(ctx)
		if err != nil {
			return err
		}
		defer owner.Leave()
		seen.begin(d.Device(), r.Now())
		other, err := r.broker.Open(ctx, r.thief(d, d.Device()+":shadow", i))
		if err != nil {
			return err
		}
		defer other.Leave()
		wait(ctx, sideBySide)
		return ctx.Err()
	})
}

// playFork has the owner renew and use its new certificate, then the thief renew
// the old one.
func playFork(ctx context.Context, r *run, t *tale) error {
	list, err := r.victims(ctx, r.hit, t.Name, 103)
	if err != nil {
		return err
	}
	seen := t.expects(r, "renewal_fork", list)
	return each(ctx, list, func(ctx context.Context, _ int, d *player) error {
		for range 2 { // with the first certificate, then with the next
			if err := visit(ctx, d); err != nil {
				return err
			}
			if d.stolen != nil {
				break
			}
			d.stolen = d.Copy()
			if err := d.Renew(ctx); err != nil {
				return err
			}
		}
		seen.begin(d.Device(), r.Now())
		if err := d.stolen.Renew(ctx); countersign.CodeOf(err) == "" {
			return errors.New("the stolen certificate was renewed")
		}
		return nil
	})
}

// playBruteForce has an address guess for each device, while the device, from its
// own address, stays connected and comes in again.
func playBruteForce(ctx context.Context, r *run, t *tale) error {
	list, err := r.victims(ctx, r.hit, t.Name, 104)
	if err != nil {
		return err
	}
	names := t.expects(r, "wrong_secret", list)
	addresses := t.expects(r, "address_blocked", nil)
	t.Attacked = len(list)
	var mu sync.Mutex
	return each(ctx, list, func(ctx context.Context, i int, d *player) error {
		issued, err := r.Admin.CreateSecret(ctx, d.Device(), api.NewSecret{})
		if err != nil {
			return err
		}
		own := device.Login{From: d.From, ClientID: d.Device(), Username: d.Device(), Password: []byte(issued.Text)}
		s, err := r.broker.Open(ctx, own)
		if err != nil {
			return err
		}
		enemy := r.abroad(101 + i)
		names.begin(d.Device(), r.Now())
		addresses.begin(enemy, r.Now())
		if err := r.guess(ctx, d.Device(), enemy); err != nil {
			return err
		}
		if err := s.Publish(ctx, d.Topic("up/sim"), reading); err != nil {
			return fmt.Errorf("the attacked device lost its session: %w", err)
		}
		s.Leave()
		again, err := r.broker.Open(ctx, own)
		if err != nil {
			return fmt.Errorf("the attacked device was locked out: %w", err)
		}
		again.Leave()
		mu.Lock()
		t.Unharmed++
		mu.Unlock()
		return nil
	})
}

// guess tries wrong secrets in a device's name, several at once: the server slows
// each answer.
func (r *run) guess(ctx context.Context, id, from string) error {
	return each(ctx, make([]struct{}, guesses), func(ctx context.Context, n int, _ struct{}) error {
		return r.mustRefuse(ctx, device.Login{From: from, ClientID: id, Username: id, Password: fmt.Appendf(nil, "winter-%d", n)}, "a guess was right")
	})
}

// playSpraying tries one secret with many names, each from an address of its own.
func playSpraying(ctx context.Context, r *run, t *tale) error {
	list, err := r.victims(ctx, r.hit, t.Name, 105)
	if err != nil {
		return err
	}
	seen := t.expects(r, "secret_spraying", nil)
	seen.begin(anything, r.Now())
	t.Attacked = len(list)
	err = each(ctx, make([]struct{}, sprayed), func(ctx context.Context, i int, _ struct{}) error {
		name := fmt.Sprintf("%s%s-%s-%d", Prefix, r.id, t.Name, i)
		return r.mustRefuse(ctx, device.Login{From: r.abroad(120 + i), ClientID: name, Username: name, Password: []byte("Password-" + r.id)}, "the sprayed secret was right")
	})
	if err != nil {
		return err
	}
	for _, d := range list {
		if err := visit(ctx, d); err != nil {
			return fmt.Errorf("a sprayed device was locked out: %w", err)
		}
		t.Unharmed++
	}
	return nil
}

// playClockFault signs tokens with a clock that is a day late.
func playClockFault(ctx context.Context, r *run, t *tale) error {
	const tokens = 4 // three are found
	seen := t.expects(r, "clock_skew", nil)
	for i := range cast {
		id := fmt.Sprintf("%s%s-%s-%d", Prefix, r.id, t.Name, i)
		issued, err := r.Admin.CreateKey(ctx, api.NewKey{Device: id, Fleet: r.hit, Label: "simulation"})
		if err != nil {
			return err
		}
		key, err := base64.StdEncoding.DecodeString(issued.Primary)
		if err != nil {
			return err
		}
		own := device.Login{From: r.address(106, 1+i), ClientID: id, Username: id, Password: sasToken(key, id, r.Now().Add(time.Hour))}
		if _, err := r.enroll(ctx, r.hit, fmt.Sprintf("%s-%d", t.Name, i), own.From); err != nil {
			return err
		}
		seen.begin(id, r.Now())
		for range tokens {
			own.Password = sasToken(key, id, r.Now().Add(-24*time.Hour))
			if err := r.mustRefuse(ctx, own, "an expired token let a device in"); err != nil {
				return err
			}
		}
	}
	return nil
}

// playOffline has devices sleep past the end of their certificates; five minutes
// stand for the months that it takes with usual ones.
func playOffline(ctx context.Context, r *run, t *tale) error {
	list, err := r.victims(ctx, r.away, t.Name, 107)
	if err != nil {
		return err
	}
	seen := t.expects(r, "connect_after_expiry", list)
	t.Attacked = len(list) // by time
	var mu sync.Mutex
	return each(ctx, list, func(ctx context.Context, _ int, d *player) error {
		if err := visit(ctx, d); err != nil {
			return err
		}
		if !wait(ctx, d.Certificate().NotAfter.Sub(r.Now())+2*time.Second) {
			return ctx.Err()
		}
		seen.begin(d.Device(), r.Now())
		if visit(ctx, d) == nil {
			return errors.New("an expired certificate let a device in")
		}
		var err error
		if d.Identity, err = d.recovering(); err != nil {
			return err
		}
		if err := d.Renew(ctx); err != nil {
			return fmt.Errorf("recover %s: %w", d.Device(), err)
		}
		if err := visit(ctx, d); err != nil {
			return err
		}
		mu.Lock()
		t.Unharmed++
		mu.Unlock()
		return nil
	})
}
