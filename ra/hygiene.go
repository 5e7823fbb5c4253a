package ra

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	// hygieneStart is when a new process looks at the keys that are on record, and
	// hygieneEvery how often it looks for those that other nodes recorded since.
	hygieneStart = time.Minute
	hygieneEvery = time.Hour
	// maxKeys bounds the RSA keys that are compared with each new one, and the
	// certificates that are looked through for them, those that end last: 26 MB of
	// memory and, once, some minutes of one core.
	maxKeys = 50_000
	// gatherKeys lets new keys come together: a factory line enrolls many, and a
	// batch costs little more than one.
	gatherKeys = 5 * time.Second
	// maxArrived bounds the new keys that wait to be compared. Further ones are found on
	// the record within hygieneEvery.
	maxArrived = 4096
)

// keyring compares the RSA keys of devices with each other: keys that share a prime
// come from bad random numbers in a factory, and anyone can compute both.
type keyring struct {
	arrived chan arrival
	once    sync.Once

	mu      sync.Mutex // held by one comparison at a time
	known   weakkey.Known
	holders map[int]keyHolder // by the number of the modulus
	pairs   []keyPair
}

// keyHolder is whose certificate a key is in; of a key that was renewed, the newest.
type keyHolder struct {
	ref           countersign.CertRef
	device, fleet string
}

// keyPair are the numbers of two moduli of two devices that share a prime.
type keyPair struct{ a, b int }

// arrival is a key that was just certified or introduced.
type arrival struct {
	keyHolder
	modulus *big.Int
}

func (k *keyring) init() {
	k.once.Do(func() {
		k.arrived = make(chan arrival, maxArrived)
		k.known.Max = maxKeys
		k.holders = map[int]keyHolder{}
	})
}

// took notes the key of a certificate once that is on record.
func (k *keyring) took(tx *store.Tx, c *countersign.Certificate, pub crypto.PublicKey) {
	key, isRSA := pub.(*rsa.PublicKey)
	if !isRSA {
		return
	}
	k.init()
	a := arrival{keyHolder{c.Ref(), c.Device, c.Fleet}, key.N}
	tx.AfterCommit(func() {
		select {
		case k.arrived <- a:
		default:
		}
	})
}

// compareKeys compares the keys on record soon after the start and now and then, and
// new ones as they come, until ctx ends.
func (d *Authority) compareKeys(ctx context.Context) {
	d.keys.init()
	next := time.NewTimer(hygieneStart)
	defer next.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			_, err = d.SharedFactors(ctx)
			next.Reset(hygieneEvery)
		case first := <-d.keys.arrived:
			select {
			case <-ctx.Done():
				return
			case <-time.After(gatherKeys):
			}
			_, err = d.compareArrived(ctx, first)
		}
		if err != nil && ctx.Err() == nil {
			d.Log.ErrorContext(ctx, "keys not compared", "error", err)
		}
	}
}

// compareArrived compares the new keys that wait.
func (d *Authority) compareArrived(ctx context.Context, first arrival) (int, error) {
	list := []arrival{first}
	for len(list) < maxArrived {
		select {
		case a := <-d.keys.arrived:
			list = append(list, a)
			continue
		default:
		}
		break
	}
	d.keys.mu.Lock()
	defer d.keys.mu.Unlock()
	return d.compare(ctx, list)
}

// SharedFactors compares the RSA keys on record that were not compared before, with
// each other and with those that were, and raises an alert on both devices of a pair
// that shares a prime. It returns the number of pairs that are new.
func (d *Authority) SharedFactors(ctx context.Context) (int, error) {
	d.keys.init()
	d.keys.mu.Lock()
	defer d.keys.mu.Unlock()
	var list []arrival
	err := d.CA.EachKey(ctx, maxKeys, func(c countersign.Certificate) error {
		cert, err := x509.ParseCertificate(c.DER)
		if err != nil {
			return fmt.Errorf("parse certificate %s: %w", c.Ref(), err)
		}
		if k, isRSA := cert.PublicKey.(*rsa.PublicKey); isRSA {
			list = append(list, arrival{keyHolder{c.Ref(), c.Device, c.Fleet}, k.N})
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return d.compare(ctx, list)
}

// compare adds keys to the ring and raises what it finds. d.keys.mu is held.
func (d *Authority) compare(ctx context.Context, list []arrival) (int, error) {
	k := &d.keys
	var fresh []arrival
	var moduli []*big.Int
	for _, a := range list {
		if number, known := k.known.Has(a.modulus); !known {
			fresh, moduli = append(fresh, a), append(moduli, a.modulus)
		} else if k.holders[number].device == a.device {
			k.holders[number] = a.keyHolder // renewed with the same key
		}
	}
	first, shared, err := k.known.Add(ctx, moduli)
	if err != nil && countersign.CodeOf(err) != countersign.TooLarge {
		return 0, fmt.Errorf("compare keys: %w", err)
	}
	for i, a := range fresh {
		k.holders[first+i] = a.keyHolder
	}
	found := 0
	for _, p := range shared {
		a, b := k.holders[p.I], k.holders[p.J]
		if a.device == b.device { // one key, renewed
			continue
		}
		found++
		if len(k.pairs) < weakkey.MaxPairs {
			k.pairs = append(k.pairs, keyPair{p.I, p.J})
		}
		if err := d.raiseShared(ctx, a, b); err != nil {
			return found, err
		}
	}
	for number := range k.holders {
		if number < k.known.Oldest() {
			delete(k.holders, number)
		}
	}
	return found, nil
}

// raiseShared records the finding on both devices, unless a process before this one or
// another node did.
func (d *Authority) raiseShared(ctx context.Context, a, b keyHolder) error {
	why := "the RSA keys of " + a.device + " and " + b.device + " share a prime: both are broken"
	var events []countersign.Event
	for _, h := range []keyHolder{a, b} {
		told, _, err := d.Events.List(ctx, event.Filter{Device: h.device, Type: countersign.FindingSharedFactor, Newest: true})
		if err != nil {
			return err
		}
		again := false
		for _, e := range told {
			again = again || e.Cert == h.ref && e.Reason == why
		}
		if !again {
			c := &countersign.Certificate{Issuer: h.ref.Issuer, Serial: h.ref.Serial, Device: h.device, Fleet: h.fleet}
			events = append(events, certEvent(countersign.FindingSharedFactor, c, countersign.System, why))
		}
	}
	if len(events) == 0 {
		return nil
	}
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return d.Events.Append(ctx, tx, events...) })
}

// SharedKeys compares what is on record as SharedFactors does, and returns the pairs of
// certificates whose keys share a prime, of those that may still be used.
func (d *Authority) SharedKeys(ctx context.Context) (pairs [][2]countersign.Certificate, err error) {
	if _, err := d.SharedFactors(ctx); err != nil {
		return nil, err
	}
	d.keys.mu.Lock()
	defer d.keys.mu.Unlock()
	for _, p := range d.keys.pairs {
		var pair [2]countersign.Certificate
		usable := true
		for i, number := range []int{p.a, p.b} {
			pair[i], err = d.CA.Certificate(ctx, d.DB, d.keys.holders[number].ref)
			if err != nil && countersign.CodeOf(err) != countersign.NotFound {
				return nil, err
			}
			usable = usable && err == nil && pair[i].State != countersign.CertRevoked && !d.Now().After(pair[i].NotAfter)
		}
		if usable {
			pairs = append(pairs, pair)
		}
	}
	return pairs, nil
}
