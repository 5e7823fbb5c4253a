package ra_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

// storm is many doing everything to a few devices at once.
type storm struct {
	*world
	t      *testing.T
	tokens map[string]string // by device

	mu      sync.Mutex
	given   map[string][]*x509.Certificate // by device
	revoked map[countersign.Serial]bool    // and the answer has come
}

// TestStormKeepsTheInvariants wants, whatever happens at once: no certificate let
// in after its revocation was answered, one active certificate of a device at
// most, and every certificate that was given out on record.
func TestStormKeepsTheInvariants(t *testing.T) {
	const workers, acts = 16, 60
	each(t, func(t *testing.T, w *world) {
		s := &storm{world: w, t: t, tokens: map[string]string{}, given: map[string][]*x509.Certificate{}, revoked: map[countersign.Serial]bool{}}
		for i := range 4 {
			id := fmt.Sprintf("pump-%d", i)
			s.tokens[id] = w.token(t, registry.Credential{Device: id, UsesMax: workers * acts})
		}
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range acts {
					s.act(fmt.Sprintf("pump-%d", rand.IntN(len(s.tokens))))
					w.clock.Advance(time.Millisecond)
				}
			})
		}
		wg.Wait()
		for id, certs := range s.given {
			if n := w.count(t, "certificate WHERE device = $1 AND state = 'active'", id); n > 1 {
				t.Errorf("%s has %d active certificates, want 1 at most", id, n)
			}
			for _, cert := range certs {
				if c := w.record(t, cert); c.Device != id {
					t.Errorf("certificate %s of %s is on record for %q", c.Serial, id, c.Device)
				}
			}
		}
		if len(s.given) != len(s.tokens) || len(s.revoked) == 0 {
			t.Errorf("got %d devices with certificates and %d revocations: nothing was tried", len(s.given), len(s.revoked))
		}
	})
}

func (s *storm) act(id string) {
	var err error
	switch n := rand.IntN(20); {
	case n < 4:
		err = s.enrolls(id)
	case n < 9:
		err = s.renews(id)
	case n < 16:
		s.connects(id)
	case n < 17:
		err = s.revokes(id)
	case n < 18:
		_, err = s.Suspend(s.t.Context(), ra.Act{Device: id})
	case n < 19:
		_, err = s.Reactivate(s.t.Context(), ra.Act{Device: id})
	default:
		_, err = s.Sweep(s.t.Context())
	}
	if code := countersign.CodeOf(err); code == countersign.Internal || code == countersign.Unavailable {
		s.t.Errorf("%s: %v: %v", code, err, errors.Unwrap(err))
	}
}

func (s *storm) enrolls(id string) error {
	secret := s.tokens[id]
	if rand.IntN(2) == 0 { // made after a revocation, as an operator does
		err := s.DB.Write(s.t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
			_, secret, err = s.Registry.CreateToken(ctx, tx, registry.Credential{Fleet: "default", Device: id, UsesMax: 1}, ttl)
			return err
		})
		if err != nil {
			return err
		}
	}
	g, err := s.Enroll(s.t.Context(), enrollment(s.t, kit.Key(s.t), id, secret))
	s.keep(g)
	return err
}

func (s *storm) keep(g *countersign.Grant) {
	if g == nil {
		return
	}
	cert := leaf(s.t, g)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.given[g.Device] = append(s.given[g.Device], cert)
}

// pick chooses one of the device's last certificates and says whether its
// revocation has been answered by now.
func (s *storm) pick(id string) (cert *x509.Certificate, revoked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	certs := s.given[id]
	if len(certs) == 0 {
		return nil, false
	}
	certs = certs[max(0, len(certs)-4):]
	cert = certs[rand.IntN(len(certs))]
	return cert, s.revoked[countersign.SerialOf(cert.SerialNumber)]
}

func (s *storm) renews(id string) error {
	cert, revoked := s.pick(id)
	if cert == nil {
		return nil
	}
	g, err := s.Reenroll(s.t.Context(), renewal(s.t, cert, kit.Key(s.t)))
	if err == nil && revoked {
		s.t.Errorf("certificate %x renewed after its revocation was answered", cert.SerialNumber)
	}
	s.keep(g)
	return err
}

func (s *storm) connects(id string) {
	cert, revoked := s.pick(id)
	if cert == nil {
		return
	}
	v := s.Admit(s.t.Context(), countersign.Connection{Gateway: "test", Remote: remote, Peer: []*x509.Certificate{cert}})
	if v.Allow && revoked {
		s.t.Errorf("certificate %x let in after its revocation was answered", cert.SerialNumber)
	}
	if v.Code == countersign.Unavailable {
		s.t.Errorf("connect: %s", v.Reason)
	}
}

func (s *storm) revokes(id string) error {
	out, err := s.Revoke(s.t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range out.Certificates {
		s.revoked[c.Serial] = true
	}
	return nil
}
