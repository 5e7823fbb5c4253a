package ca

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
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

// Publisher publishes a new CRL soon after each change, one for many changes where
// they come fast, and before the old one expires. Make it with NewPublisher.
type Publisher struct {
	ca     *CA
	events *event.Log
	log    *slog.Logger
	wake   chan struct{}

	mu    sync.Mutex
	lists map[string]*listState // by issuer
}

// listState counts the changes requested and shown, of one issuer's list.
type listState struct {
	issuer       string
	asked, shown uint64
	number       int64
	resting      bool          // not published now although requested
	changed      chan struct{} // closed and replaced at each publication
}

// NewPublisher returns a publisher of the lists of c. It publishes nothing before Run.
func NewPublisher(c *CA, events *event.Log, log *slog.Logger) *Publisher {
	return &Publisher{ca: c, events: events, log: log, wake: make(chan struct{}, 1), lists: map[string]*listState{}}
}

// Run publishes until ctx ends. It begins with a list of each issuing authority: a
// process that was killed may have recorded a revocation that no list shows. The keys
// of roots stay out of daily work.
func (p *Publisher) Run(ctx context.Context) error {
	tick := time.NewTicker(dueEvery)
	defer tick.Stop()
	for _, a := range p.ca.Authorities() {
		if a.Kind == countersign.IssuingAuthority {
			p.Changed(a.ID)
		}
	}
	p.AskDue(ctx)
	for {
		p.publishAsked(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.AskDue(ctx)
		case <-p.wake:
		}
	}
}

// AskDue requests the lists that are due now; Run does so every minute.
func (p *Publisher) AskDue(ctx context.Context) {
	due, err := p.ca.Due(ctx)
	if err != nil && ctx.Err() == nil {
		p.log.ErrorContext(ctx, "due crls not listed", "error", err)
	}
	for _, l := range due {
		p.Changed(l.Issuer)
	}
}

// Changed requests a new list of the issuer.
func (p *Publisher) Changed(issuer string) {
	if a, err := p.ca.Authority(issuer); err != nil || a.KeyURI == "" {
		return // a registered authority publishes its own
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state(issuer).asked++
	p.rouse()
}

// Wait waits until a list shows all that was Changed by now, and returns its
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

func (p *Publisher) publishAsked(ctx context.Context) {
	for {
		s, asked := p.next()
		if s == nil || ctx.Err() != nil {
			return
		}
		begin := time.Now() //nolint:forbidigo // measures work, not the world's time
		list, fresh, err := p.ca.Refresh(ctx, s.issuer, 0)
		rest := restFactor * time.Since(begin)
		switch {
		case err == nil:
			p.shown(s, asked, list, fresh)
		case ctx.Err() == nil:
			p.log.ErrorContext(ctx, "crl not published", "authority", s.issuer, "error", countersign.Detail(err))
			rest = retryAfter
		}
		p.rest(s, rest)
	}
}

// next returns a list that is requested and not resting, nil if there is none, and the
// changes that it will show.
func (p *Publisher) next() (s *listState, asked uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.lists {
		if s.asked > s.shown && !s.resting {
			return s, s.asked
		}
	}
	return nil, 0
}

// shown notes that a list shows what was requested. fresh: this process published it for
// that. Another node's list is announced to this one, which may have to load it too.
func (p *Publisher) shown(s *listState, asked uint64, list *countersign.CRL, fresh bool) {
	p.mu.Lock()
	another := list.Number != s.number
	s.shown, s.number = asked, list.Number
	close(s.changed)
	s.changed = make(chan struct{})
	p.mu.Unlock()
	e := countersign.Event{
		Type: countersign.CRLPublished, Actor: countersign.System, Cert: countersign.CertRef{Issuer: s.issuer},
		Data: map[string]string{
			"number": strconv.FormatInt(list.Number, 10), "entries": strconv.Itoa(list.Entries),
			"next_update": list.NextUpdate.UTC().Format(time.RFC3339),
		},
	}
	switch {
	case fresh:
		p.events.Later(e)
	case another:
		p.events.Announce(e)
	}
}

// rest leaves one issuer's list alone for a while; those of others go on.
func (p *Publisher) rest(s *listState, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.resting = true
	time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.resting = false
		p.rouse()
	})
}

// state returns the state of one issuer's list. p.mu is held.
func (p *Publisher) state(issuer string) *listState {
	s := p.lists[issuer]
	if s == nil {
		s = &listState{issuer: issuer, changed: make(chan struct{})}
		p.lists[issuer] = s
	}
	return s
}

// rouse makes Run look for lists that are requested.
func (p *Publisher) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
