package ca

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	// primesStart is when a new process looks at the keys that are on record, and
	// primesEvery how often it looks for those that other nodes recorded since.
	primesStart = time.Minute
	primesEvery = time.Hour
	// maxKeys bounds the RSA keys that are compared with each new one, and the
	// certificates that are looked through for them, those that end last: 26 MB of
	// memory and, once, some minutes of one core.
	maxKeys = 50_000
	// gatherKeys lets new keys come together: a factory line enrolls many, and a
	// batch costs little more than one.
	gatherKeys = 5 * time.Second
)

// PrimeCheck compares the RSA keys of devices with each other: keys that share a prime
// come from bad random numbers in a factory, and anyone can compute both. Make it with
// NewPrimeCheck.
type PrimeCheck struct {
	ca     *CA
	events *event.Log
	log    *slog.Logger

	mu      sync.Mutex // held by one comparison at a time
	known   weakkey.Known
	holders map[int]deviceKey // by the number of the modulus
	pairs   [][2]int          // of numbers of moduli that share a prime
}

// NewPrimeCheck returns a check of the keys that c has on record.
func NewPrimeCheck(c *CA, events *event.Log, log *slog.Logger) *PrimeCheck {
	return &PrimeCheck{ca: c, events: events, log: log, known: weakkey.Known{Max: maxKeys}, holders: map[int]deviceKey{}}
}

// Run compares the keys on record soon after the start and every hour, and new ones as
// they come, until ctx ends.
func (p *PrimeCheck) Run(ctx context.Context) error {
	next := time.NewTimer(primesStart)
	defer next.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
			_, err = p.Compare(ctx)
			next.Reset(primesEvery)
		case first := <-p.ca.newKeys:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(gatherKeys):
			}
			_, err = p.compare(ctx, p.arrived(first))
		}
		if err != nil && ctx.Err() == nil {
			p.log.ErrorContext(ctx, "keys not compared", "error", err)
		}
	}
}

// arrived returns the new keys that wait, behind the first.
func (p *PrimeCheck) arrived(first deviceKey) []deviceKey {
	list := []deviceKey{first}
	for len(list) < maxArrived {
		select {
		case k := <-p.ca.newKeys:
			list = append(list, k)
		default:
			return list
		}
	}
	return list
}

// Compare compares the RSA keys on record that were not compared before, with each
// other and with those that were, and raises an alert on both devices of a pair that
// shares a prime. It returns the number of pairs that are new.
func (p *PrimeCheck) Compare(ctx context.Context) (int, error) {
	var list []deviceKey
	var q store.Query
	q.And("device <> '' AND not_after > ?", store.Micros(p.ca.Now()))
	parts := partsOf(wholeColumns, unrevoked(), "not_after DESC, serial DESC, issuer DESC", maxKeys)
	text := parts.Text(&q)
	for c, err := range store.Rows(ctx, p.ca.DB, scanCert, text, q.Args...) {
		if err != nil {
			return 0, fmt.Errorf("read certificates: %w", err)
		}
		cert, err := x509.ParseCertificate(c.DER)
		if err != nil {
			return 0, fmt.Errorf("parse certificate %s: %w", c.Ref(), err)
		}
		if k, isRSA := cert.PublicKey.(*rsa.PublicKey); isRSA {
			list = append(list, deviceKey{c.Ref(), c.Device, c.Fleet, k.N})
		}
	}
	return p.compare(ctx, list)
}

func (p *PrimeCheck) compare(ctx context.Context, list []deviceKey) (found int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fresh []deviceKey
	var moduli []*big.Int
	for _, k := range list {
		if number, known := p.known.Has(k.modulus); !known {
			fresh, moduli = append(fresh, k), append(moduli, k.modulus)
		} else if p.holders[number].device == k.device {
			p.holders[number] = k // renewed with the same key
		}
	}
	first, shared, err := p.known.Add(ctx, moduli)
	if err != nil && countersign.CodeOf(err) != countersign.TooLarge {
		return 0, fmt.Errorf("compare keys: %w", err)
	}
	for i, k := range fresh {
		p.holders[first+i] = k
	}
	for _, s := range shared {
		a, b := p.holders[s.I], p.holders[s.J]
		if a.device == b.device { // one key, renewed
			continue
		}
		found++
		if len(p.pairs) < weakkey.MaxPairs {
			p.pairs = append(p.pairs, [2]int{s.I, s.J})
		}
		if err := p.raise(ctx, a, b); err != nil {
			return found, err
		}
	}
	for number := range p.holders {
		if number < p.known.Oldest() {
			delete(p.holders, number)
		}
	}
	return found, nil
}

// raise records the finding on both devices, unless a process before this one or another
// node did.
func (p *PrimeCheck) raise(ctx context.Context, a, b deviceKey) error {
	why := "the RSA keys of " + a.device + " and " + b.device + " share a prime: both are broken"
	var events []countersign.Event
	for _, k := range []deviceKey{a, b} {
		before, _, err := p.events.List(ctx, event.Filter{Device: k.device, Type: countersign.FindingSharedFactor, Newest: true})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(before, func(e countersign.Event) bool { return e.Cert == k.ref && e.Reason == why }) {
			events = append(events, countersign.Event{
				Type: countersign.FindingSharedFactor, Actor: countersign.System, Device: k.device, Fleet: k.fleet, Cert: k.ref, Reason: why,
			})
		}
	}
	if len(events) == 0 {
		return nil
	}
	return p.ca.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return p.events.Append(ctx, tx, events...) })
}

// Pairs compares what is on record as Compare does, and returns the pairs of certificates
// whose keys share a prime, of those that may still be used.
func (p *PrimeCheck) Pairs(ctx context.Context) (pairs [][2]countersign.Certificate, err error) {
	if _, err := p.Compare(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, numbers := range p.pairs {
		var pair [2]countersign.Certificate
		usable := true
		for i, number := range numbers {
			pair[i], err = Certificate(ctx, p.ca.DB, p.holders[number].ref)
			if err != nil && countersign.CodeOf(err) != countersign.NotFound {
				return nil, err
			}
			usable = usable && err == nil && pair[i].State != countersign.CertRevoked && !p.ca.Now().After(pair[i].NotAfter)
		}
		if usable {
			pairs = append(pairs, pair)
		}
	}
	return pairs, nil
}
