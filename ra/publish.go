package ra

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
)

const (
	// dueEvery is how often the age of the lists is looked at.
	dueEvery = time.Minute
	// restFactor times the time a list took is the rest before the next one, so
	// that publishing it takes no more than a fifth of a core however many are revoked.
	restFactor = 4
	// retryAfter a failed publication.
	retryAfter = 5 * time.Second
)

// Publisher makes a new CRL soon after each change, one for many changes where
// they come fast, and before the old one expires.
type Publisher struct {
	CA     *ca.CA
	Events *event.Log
	Log    *slog.Logger

	mu    sync.Mutex
	lists map[string]*listState // by issuer
	kick  chan struct{}
}

// listState counts the changes asked for and shown, of one issuer's list.
type listState struct {
	asked, shown uint64
	number       int64
	resting      bool          // not published now although asked
	changed      chan struct{} // closed and replaced at each publication
}

func (p *Publisher) init() {
	if p.lists == nil {
		p.lists = map[string]*listState{}
		p.kick = make(chan struct{}, 1)
	}
}

func (p *Publisher) state(issuer string) *listState {
	p.init()
	s := p.lists[issuer]
	if s == nil {
		s = &listState{changed: make(chan struct{})}
		p.lists[issuer] = s
	}
	return s
}

// Changed asks for a new list of the issuer.
func (p *Publisher) Changed(issuer string) {
	if a, err := p.CA.Authority(issuer); err != nil || a.KeyURI == "" {
		return // a registered authority publishes its own
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state(issuer).asked++
	p.wake()
}

func (p *Publisher) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Wait waits until a list shows all that was Changed by now, and gives its
// number; 0 if ctx ends first.
func (p *Publisher) Wait(ctx context.Context, issuer string) int64 {
	p.mu.Lock()
	s := p.state(issuer)
	want := s.asked
	for s.shown < want {
		changed := s.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0
		}
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	return s.number
}

// Run publishes until ctx ends. It begins with a list of every issuing authority:
// a process that was killed may have recorded a revocation and not yet shown it.
func (p *Publisher) Run(ctx context.Context) error {
	p.mu.Lock()
	p.init()
	p.mu.Unlock()
	tick := time.NewTicker(dueEvery)
	defer tick.Stop()
	p.askAll()
	p.AskDue(ctx)
	for {
		p.publishAsked(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.AskDue(ctx)
		case <-p.kick:
		}
	}
}

// askAll asks for all lists but those of roots, whose keys stay out of daily work.
func (p *Publisher) askAll() {
	for _, a := range p.CA.Authorities() {
		if a.Kind == countersign.IssuingAuthority {
			p.Changed(a.ID)
		}
	}
}

// AskDue asks for the lists that are due now; Run does so every minute.
func (p *Publisher) AskDue(ctx context.Context) {
	due, err := p.CA.Due(ctx)
	if err != nil && ctx.Err() == nil {
		p.Log.ErrorContext(ctx, "due crls not listed", "error", err)
	}
	for _, l := range due {
		p.Changed(l.Issuer)
	}
}

func (p *Publisher) publishAsked(ctx context.Context) {
	for {
		issuer, asked := p.next()
		if issuer == "" || ctx.Err() != nil {
			return
		}
		begin := time.Now() //nolint:forbidigo // measures work, not the world's time
		list, err := p.CA.Publish(ctx, issuer, 0)
		rest := restFactor * time.Since(begin)
		switch {
		case err == nil:
			p.published(issuer, asked, list)
		case ctx.Err() == nil:
			p.Log.ErrorContext(ctx, "crl not published", "authority", issuer, "error", causeOf(err))
			rest = retryAfter
		}
		p.rest(issuer, rest)
	}
}

// next gives a list that is asked for and not resting.
func (p *Publisher) next() (string, uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for issuer, s := range p.lists {
		if s.asked > s.shown && !s.resting {
			return issuer, s.asked
		}
	}
	return "", 0
}

// rest lets one issuer's list be for a while; those of others go on.
func (p *Publisher) rest(issuer string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state(issuer)
	s.resting = true
	time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.resting = false
		p.wake()
	})
}

func (p *Publisher) published(issuer string, asked uint64, list *countersign.CRL) {
	p.mu.Lock()
	s := p.state(issuer)
	s.shown, s.number = asked, list.Number
	close(s.changed)
	s.changed = make(chan struct{})
	p.mu.Unlock()
	p.Events.Later(countersign.Event{
		Type: countersign.CRLPublished, Actor: countersign.System, Cert: countersign.CertRef{Issuer: issuer},
		Data: map[string]string{
			"number": strconv.FormatInt(list.Number, 10), "entries": strconv.Itoa(list.Entries),
			"next_update": list.NextUpdate.UTC().Format(time.RFC3339),
		},
	})
}
