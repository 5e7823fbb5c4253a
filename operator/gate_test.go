package operator_test

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// gated is a gate whose events the test reads.
type gated struct {
	*operator.Gate
	desk *desk

	mu     sync.Mutex
	events []countersign.Event
}

func newGate(db *store.DB) *gated {
	g := &gated{desk: newDesk(db)}
	now := func() time.Time { return g.desk.now }
	log := slog.New(slog.DiscardHandler)
	g.Gate = &operator.Gate{
		Accounts: g.desk.Accounts, Now: now,
		Ledger: &lockout.Ledger{DB: db, Now: now, Log: log, Events: &event.Log{DB: db, Now: now, Log: log}},
		Later: func(e countersign.Event) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.events = append(g.events, e)
		},
	}
	return g
}

// take returns the events since it was last called.
func (g *gated) take() []countersign.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.events
	g.events = nil
	return list
}

func askFrom(addr string) operator.Ask {
	return operator.Ask{Remote: netip.MustParseAddrPort(addr), Via: "rest", Route: "GET /devices"}
}

// hurried is a context that no answer is held back in.
func hurried(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestGateBlocksWhoTriesTokens(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		g := newGate(db)
		_, secret := g.desk.create(t, "ana", operator.Operator)
		wrong := operator.TokenPrefix + "aaaa"
		thief := askFrom("192.0.2.7:1")
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 { // slower each time; then nobody waits here
			began := time.Now()
			_, err := g.Authenticate(ctx, wrong, thief)
			if countersign.CodeOf(err) != countersign.BadCredential || time.Since(began) < 200*time.Millisecond {
				t.Errorf("a wrong token: got %v after %s, want it refused slowly", err, time.Since(began))
			}
		}
		cancel()
		for range 7 {
			_ = g.Prove(ctx, thief, func() error { return countersign.Errorf(countersign.BadCredential, "wrong") })
		}
		if _, err := g.Authenticate(t.Context(), wrong, thief); countersign.CodeOf(err) != countersign.RateLimited {
			t.Errorf("a wrong token after ten: got %v, want the address blocked", err)
		}
		if tok, err := g.Authenticate(t.Context(), secret, thief); err != nil || tok.Name != "ana" {
			t.Errorf("a right token from a blocked address: got %+v, %v, want it to pass", tok, err)
		}
		if tok, err := g.Authenticate(t.Context(), secret, askFrom("192.0.2.8:1")); err != nil || tok.Name != "ana" {
			t.Errorf("a right token from elsewhere: got %+v, %v", tok, err)
		}
		_, err := g.Ledger.Block(t.Context(), lockout.Block{Prefix: netip.MustParsePrefix("192.0.2.7/32"), Reason: "no", Until: g.desk.now.Add(time.Hour)}, "operator:bo", "cli")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Authenticate(t.Context(), secret, thief); countersign.CodeOf(err) != countersign.RateLimited {
			t.Errorf("a right token, the address blocked by an operator: got %v, want it refused", err)
		}
		kinds := map[countersign.EventType]int{}
		for _, e := range g.take() {
			kinds[e.Type]++
			if e.Type == countersign.OperatorRefused && (e.Remote != "192.0.2.7:1" || e.Code != countersign.BadCredential || e.Data["route"] != "GET /devices" || e.Actor != "unknown") {
				t.Errorf("got %+v", e)
			}
		}
		if kinds[countersign.OperatorRefused] != 5 || kinds[countersign.FindingGuessing] != 1 {
			t.Errorf("got %v, want five refusals, the others thinned out, and the finding at ten", kinds)
		}
		g.desk.now = g.desk.now.Add(time.Minute)
		_ = g.Prove(t.Context(), thief, func() error { return nil })
		_, _ = g.Authenticate(hurried(t), wrong, askFrom("192.0.2.9:1"))
		if list := g.take(); len(list) != 1 || list[0].Data["more_before"] != "" {
			t.Errorf("another address: got %+v, want an event of its own", list)
		}
	})
}

// TestGateCountsGuessesOnly has an operator be refused for reasons that no guess has.
func TestGateCountsGuessesOnly(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		g := newGate(db)
		gone, revoked := g.desk.create(t, "ben", operator.Admin)
		_, expired := g.desk.create(t, "cy", operator.Admin)
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := g.desk.Revoke(ctx, tx, gone.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		site := askFrom("198.51.100.1:1")
		for range 12 {
			for secret, want := range map[string]countersign.Code{revoked: countersign.BadCredential, "": countersign.Unauthenticated} {
				if _, err := g.Authenticate(t.Context(), secret, site); countersign.CodeOf(err) != want {
					t.Fatalf("got %v, want %s", err, want)
				}
			}
		}
		g.desk.now = g.desk.now.Add(2 * time.Hour)
		for range 12 {
			if _, err := g.Authenticate(t.Context(), expired, site); countersign.CodeOf(err) != countersign.CredentialExpire {
				t.Fatalf("got %v, want it expired", err)
			}
		}
		if n := len(g.take()); n != 10 {
			t.Errorf("%d events, want five of each refusal", n)
		}
	})
}

func TestGateRecordsWhatARoleMayNotDo(t *testing.T) {
	g := newGate(storetest.Open(t))
	for i := range 7 {
		err := g.Allow("ann", operator.Viewer, operator.Revoke, operator.Ask{Remote: netip.MustParseAddrPort("192.0.2.1:9"), Via: "rest", Route: "POST /devices/{id}/revoke"})
		if countersign.CodeOf(err) != countersign.NotAllowed {
			t.Fatalf("got %v", err)
		}
		if i == 5 {
			g.desk.now = g.desk.now.Add(11 * time.Second)
		}
	}
	if err := g.Allow("ann", operator.Viewer, operator.Read, askFrom("192.0.2.1:9")); err != nil {
		t.Errorf("what the role allows: %v", err)
	}
	list := g.take()
	if len(list) != 6 {
		t.Fatalf("%d events, want five and one of the next window", len(list))
	}
	e := list[5]
	if e.Type != countersign.OperatorRefused || e.Actor != "operator:ann" || e.Remote != "192.0.2.1:9" || e.Code != countersign.NotAllowed ||
		e.Data["role"] != "viewer" || e.Data["route"] != "POST /devices/{id}/revoke" || e.Data["more_before"] != "1" || e.Data["act"] != "revoke" {
		t.Errorf("got %+v", e)
	}
}

// TestGateBoundsTheTriesOfABlockedAddress counts the checks that a blocked address causes:
// as many as at the doors for devices.
func TestGateBoundsTheTriesOfABlockedAddress(t *testing.T) {
	g := newGate(storetest.Open(t))
	_, secret := g.desk.create(t, "ana", operator.Operator)
	site := askFrom("192.0.2.7:1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // no answer is held back
	checked := 0
	wrong := func() error {
		checked++
		return countersign.Errorf(countersign.BadCredential, "wrong")
	}
	for range 10 {
		_ = g.Prove(ctx, site, wrong)
	}
	if checked != 10 {
		t.Fatalf("%d checks before the block, want 10", checked)
	}
	for range 1000 {
		if err := g.Prove(ctx, site, wrong); countersign.CodeOf(err) != countersign.RateLimited {
			t.Fatalf("a wrong token from a blocked address: got %v", err)
		}
	}
	if checked > 10+20 {
		t.Errorf("%d checks for a blocked address at once, want at most 20", checked-10)
	}
	if _, err := g.Authenticate(t.Context(), secret, site); countersign.CodeOf(err) != countersign.RateLimited {
		t.Errorf("a right token beyond the rate: got %v, want it to come back later", err)
	}
	g.desk.now = g.desk.now.Add(2 * time.Second)
	if tok, err := g.Authenticate(t.Context(), secret, site); err != nil || tok.Name != "ana" {
		t.Errorf("a right token two seconds later: got %+v, %v", tok, err)
	}
}
