package ra_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// budget gives the devices of a fleet another budget.
func (w *world) budget(t *testing.T, fleet string, b countersign.Budget) {
	t.Helper()
	w.change(t, fleet, func(f *countersign.Fleet) { f.Rules.Budget = b })
}

// another is a second node over the same record, or the same one after a restart.
func (w *world) another() *ra.Authority {
	return &ra.Authority{
		DB: w.DB, CA: w.CA, Registry: w.Registry, Access: w.Access, Ledger: &lockout.Ledger{Now: w.Now}, Events: w.Events, Now: w.Now, Log: w.Log,
		Sealer: w.Sealer, Secret: w.Secret,
	}
}

// TestRenewalsOfADeviceAreBounded has one device ask for certificates in a loop, in each
// way that it can, on two nodes.
func TestRenewalsOfADeviceAreBounded(t *testing.T) {
	const most = 5
	each(t, func(t *testing.T, w *world) {
		m := newMaker(t, w.Now())
		w.registers(t, ca.Registration{ID: "maker", Certificate: m.cert.Raw})
		w.rules(t, "default", countersign.Rules{
			Authorities: []string{"maker"}, Budget: countersign.Budget{Renewals: most},
			Recovery: &countersign.Recovery{MaxAge: countersign.Span(1000 * time.Hour), MaxTimes: 1000},
		})
		for name, start := range map[string]func(id string) func(*ra.Authority) error{
			"renewal, key given up": func(id string) func(*ra.Authority) error {
				old := w.active(t, id)
				return func(d *ra.Authority) error { return asks(d.Reenroll, renewal(t, old, kit.Key(t))) }
			},
			"renewal, used": func(id string) func(*ra.Authority) error {
				cert := w.active(t, id)
				return func(d *ra.Authority) error {
					g, err := d.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
					if err == nil {
						cert = leaf(t, g)
					}
					return err
				}
			},
			"recovery": func(id string) func(*ra.Authority) error {
				old := w.active(t, id)
				w.clock.Advance(ca.DefaultValidity + time.Hour)
				return func(d *ra.Authority) error {
					return asks(ra.Recovery{RA: d}.Reenroll, renewal(t, old, kit.Key(t)))
				}
			},
			"factory certificate that never connects": func(id string) func(*ra.Authority) error {
				ev := peer(m.device(t, id, w.Now()))
				return func(d *ra.Authority) error { return asks(d.Enroll, shows(t, kit.Key(t), id, ev)) }
			},
			"token for the device": func(id string) func(*ra.Authority) error {
				ev := countersign.Evidence{Token: w.token(t, registry.Credential{Device: id, UsesMax: 1000})}
				return func(d *ra.Authority) error { return asks(d.Enroll, shows(t, kit.Key(t), id, ev)) }
			},
		} {
			t.Run(name, func(t *testing.T) {
				id := "dev-" + strings.ReplaceAll(strings.ReplaceAll(name, ",", ""), " ", "-")
				try := start(id)
				node, n := []*ra.Authority{w.Authority, w.another()}, 0
				var err error
				for ; n < 3*most; n++ {
					w.clock.Advance(time.Second)
					if err = try(node[n%2]); err != nil {
						break
					}
				}
				kit.WantCode(t, err, countersign.OverBudget)
				if got := w.count(t, `certificate WHERE device = $1 AND issued_at > $2`, id, w.Now().Add(-time.Hour).UnixMicro()); got != most {
					t.Errorf("got %d certificates within the hour, want %d", got, most)
				}
				wait := countersign.Public(err).RetryAfter
				if wait < 50*time.Minute || wait > time.Hour {
					t.Errorf("got Retry-After %s, want the time until the oldest is an hour old", wait)
				}
				if err := try(w.another()); countersign.CodeOf(err) != countersign.OverBudget {
					t.Errorf("after a restart: got %v", err)
				}
				list := w.events(t, event.Filter{Type: countersign.BudgetExceeded, Device: id})
				if len(list) == 0 || list[0].Data["budget"] != "renewals" || list[0].Data["limit"] != fmt.Sprint(most) {
					t.Errorf("got events %+v, want budget.exceeded with budget and limit", list)
				}
				w.clock.Advance(wait + time.Second)
				if name != "renewal, used" {
					if err := try(w.Authority); err != nil {
						t.Errorf("after Retry-After: %v", err)
					}
				}
			})
		}
	})
}

func asks(how func(context.Context, countersign.EnrollRequest) (*countersign.Grant, error), req countersign.EnrollRequest) error {
	_, err := how(context.Background(), req)
	return err
}

// TestRenewalsAtOnceAreBoundedExactly races two nodes for the last ones.
func TestRenewalsAtOnceAreBoundedExactly(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.budget(t, "default", countersign.Budget{Renewals: 4})
		ev := countersign.Evidence{Token: w.token(t, registry.Credential{Device: "pump-1", UsesMax: 1000})}
		nodes := []*ra.Authority{w.Authority, w.another()}
		var running sync.WaitGroup
		var won atomic.Int32
		for n := range 16 {
			req := shows(t, kit.Key(t), "pump-1", ev)
			req.Began = w.Now().Add(time.Duration(n+1) * time.Minute) // none was overtaken
			running.Go(func() {
				if _, err := nodes[n%2].Enroll(context.WithoutCancel(t.Context()), req); err == nil {
					won.Add(1)
				}
			})
		}
		running.Wait()
		if got := w.count(t, `certificate WHERE device = 'pump-1'`); got > 4 || int(won.Load()) != got {
			t.Errorf("got %d certificates, %d answers, want at most 4", got, won.Load())
		}
	})
}

// TestRefusalsOfOneIdentityAreBounded shows what is spent, or revoked, over and over,
// under changing names and from changing addresses.
func TestRefusalsOfOneIdentityAreBounded(t *testing.T) {
	const tries = 3000
	each(t, func(t *testing.T, w *world) {
		spent := w.token(t, registry.Credential{})
		if _, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", spent)); err != nil {
			t.Fatal(err)
		}
		key, revoked := kit.Key(t), w.active(t, "pump-2")
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-2", Reason: countersign.KeyCompromise, Actor: boss.Actor}); err != nil {
			t.Fatal(err)
		}
		addr := func(n int) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2::%x", n+1)), 1)
		}
		for name, try := range map[string]func(n int) countersign.Code{
			"spent token": func(n int) countersign.Code {
				req := enrollment(t, key, fmt.Sprint("name-", n%50), spent)
				req.Remote = addr(n)
				return countersign.CodeOf(asks(w.Enroll, req))
			},
			"revoked certificate, renewing": func(n int) countersign.Code {
				req := renewal(t, revoked, key)
				req.Remote = addr(n)
				return countersign.CodeOf(asks(w.Reenroll, req))
			},
			"revoked certificate, connecting": func(n int) countersign.Code {
				return w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: addr(n), Peer: []*x509.Certificate{revoked}}).Code
			},
		} {
			before := w.count(t, "event WHERE type IN ('enrollment.refused', 'connection.refused')")
			limited := 0
			n := tries
			if name == "spent token" {
				n /= 10 // it costs a signature each
			}
			for i := range n {
				if try(i) == countersign.RateLimited {
					limited++
				}
			}
			w.clock.Advance(time.Minute)
			w.flush(t)
			list := w.events(t, event.Filter{})
			written, counted := 0, 0
			for _, e := range list {
				if e.Type == countersign.EnrollRefused || e.Type == countersign.ConnectRefused {
					written++
					var more int
					_, _ = fmt.Sscan(e.Data["more_before"], &more)
					counted += 1 + more
				}
			}
			written -= before
			if written > 20 {
				t.Errorf("%s: got %d events of %d refusals", name, written, n)
			}
			if strings.HasPrefix(name, "spent") && limited < n-40 {
				t.Errorf("%s: %d of %d were answered with rate_limited", name, limited, n)
			}
			if err := w.Ledger.Check(addr(0).Addr()); err != nil {
				t.Errorf("%s: the address is blocked, though nobody guessed: %v", name, err)
			}
			w.total += n
			if counted != w.total {
				t.Errorf("%s: the log counts %d refusals of %d", name, counted, w.total)
			}
		}
	})
}

// flush has the desk write the numbers of what it left out, as its Run does.
// TestLinesOfOneIdentityAreBoundedOverAllAddresses has a device do what is refused from
// more addresses than its budget has lines, over minutes.
func TestLinesOfOneIdentityAreBoundedOverAllAddresses(t *testing.T) {
	const addresses, windows = 400, 12 // of ten seconds
	w := newWorld(t, storetest.Open(t))
	w.active(t, "pump-1")
	for range windows {
		for i := range addresses {
			w.Judged(countersign.Session{
				ID: "s", Device: "pump-1", Fleet: countersign.DefaultFleet, Gateway: "mqtt",
				Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1),
			}, countersign.Act{Action: "publish", Topic: "x"})
		}
		w.clock.Advance(10 * time.Second)
		w.flush(t)
	}
	written, counted := 0, 0
	for _, e := range w.events(t, event.Filter{Device: "pump-1", Type: countersign.TopicDenied}) {
		var more int
		_, _ = fmt.Sscan(e.Data["more_before"], &more)
		written, counted = written+1, counted+1+more
	}
	// Its budget, and in each window one line that counts what was left out.
	if most := countersign.DefaultEvents*windows/6 + windows; written > most {
		t.Errorf("got %d lines, want at most %d", written, most)
	}
	if counted != addresses*windows {
		t.Errorf("%d refusals are accounted for, want %d", counted, addresses*windows)
	}
	if n := len(w.events(t, event.Filter{Device: "pump-1", Type: countersign.BudgetExceeded})); n != windows {
		t.Errorf("got %d events of the budget, want %d", n, windows)
	}
}

func (w *world) flush(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
}
