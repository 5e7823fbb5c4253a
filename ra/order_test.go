package ra_test

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// back is how far a clock is set back, or ahead of that of another node.
const back = time.Hour

// revoked takes the identity of a device away and then sets the clock back.
func (w *world) revoked(t *testing.T, id string) {
	t.Helper()
	if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise}); err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(-back)
}

// readmitted enrolls a device with a new token of its own.
func (w *world) readmitted(t *testing.T, id string) *x509.Certificate {
	t.Helper()
	g, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), id, w.token(t, registry.Credential{Device: id})))
	if err != nil {
		t.Fatalf("readmit: %v", err)
	}
	w.clock.Advance(time.Second)
	return leaf(t, g)
}

// TestAClockSetBackChangesNoOrder: what was made after a revocation is newer than it,
// and what was made before is older, whatever the clock says.
func TestAClockSetBackChangesNoOrder(t *testing.T) {
	for name, try := range map[string]func(t *testing.T, w *world, id string){
		"token":              clockToken,
		"secret":             clockSecret,
		"symmetric key":      clockKey,
		"access token":       clockAccessToken,
		"reactivated by SAS": clockReactivated,
		"fork":               clockFork,
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				w.gives(t)
				w.clock.Advance(24 * time.Hour) // the authority is older than the step
				try(t, w, "pump-1")
			})
		})
	}
}

func clockToken(t *testing.T, w *world, id string) {
	before := w.token(t, registry.Credential{Device: id, UsesMax: 9})
	old := w.active(t, id)
	w.revoked(t, id)
	_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), id, before))
	kit.WantCode(t, err, countersign.NotAllowed)
	cert := w.readmitted(t, id)
	w.use(t, cert)
	w.use(t, w.renew(t, cert, kit.Key(t)))
	if v := w.connect(t, old); v.Allow {
		t.Error("the revoked certificate is let in")
	}
	_, err = w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
	kit.WantCode(t, err, countersign.CertIsRevoked)
	if dev := w.device(t, id); dev.State != countersign.DeviceActive {
		t.Errorf("got device %s after its former certificate was shown, want active", dev.State)
	}
}

func clockSecret(t *testing.T, w *world, id string) {
	w.active(t, id)
	w.revoked(t, id)
	_, text := w.secret(t, access.SecretOrder{Device: id})
	for range 2 { // the first connection makes it active
		if v := w.Admit(t.Context(), by(id, text, "192.0.2.1")); !v.Allow {
			t.Fatalf("got %s (%s), want the new secret to be let in", v.Code, v.Reason)
		}
	}
}

// keyOf registers a symmetric key of a device.
func (w *world) keyOf(t *testing.T, id string) []byte {
	t.Helper()
	_, keys, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: id}, provision.SymmetricKeys{}, boss)
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(keys.Primary)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func clockKey(t *testing.T, w *world, id string) {
	w.active(t, id)
	w.revoked(t, id)
	token := hubToken(w.keyOf(t, id), id, w.clock.Now().Add(time.Hour))
	for range 2 {
		if v := w.Admit(t.Context(), by(id, token, "192.0.2.1")); !v.Allow {
			t.Fatalf("got %s (%s), want the new key to be let in", v.Code, v.Reason)
		}
	}
}

func clockAccessToken(t *testing.T, w *world, id string) {
	w.active(t, id)
	w.revoked(t, id)
	cert := w.readmitted(t, id)
	w.use(t, cert)
	_, text := w.deviceToken(t, withCertificate(cert))
	if v := w.Admit(t.Context(), tokenBearer(text)); !v.Allow {
		t.Errorf("got %s (%s), want the token of the readmitted device to be let in", v.Code, v.Reason)
	}
}

// clockReactivated: a device that connects by its key comes back active, and one
// that has not connected since its identity was lost comes back registered.
func clockReactivated(t *testing.T, w *world, id string) {
	flush := func() {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		stop() // Run writes what is left
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	cycle := func(want countersign.DeviceState) {
		t.Helper()
		if _, err := w.Suspend(t.Context(), ra.Act{Device: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Reactivate(t.Context(), ra.Act{Device: id}); err != nil {
			t.Fatal(err)
		}
		if dev := w.device(t, id); dev.State != want {
			t.Errorf("got %s after suspending and reactivating, want %s", dev.State, want)
		}
	}
	session := countersign.Session{Device: id, Fleet: "default", Remote: remote}
	w.active(t, id)
	session.Since = w.clock.Now()
	w.Opened(session)
	flush()
	w.revoked(t, id)
	cycle(countersign.DeviceRegistered)
	token := hubToken(w.keyOf(t, id), id, w.clock.Now().Add(time.Hour))
	if v := w.Admit(t.Context(), by(id, token, "192.0.2.1")); !v.Allow {
		t.Fatalf("got %s (%s)", v.Code, v.Reason)
	}
	session.Since = w.clock.Now()
	w.Opened(session)
	flush()
	cycle(countersign.DeviceActive)
}

func clockFork(t *testing.T, w *world, id string) {
	old := w.active(t, id)
	w.clock.Advance(2 * back) // the certificate is older than the step
	w.use(t, w.renew(t, old, kit.Key(t)))
	w.clock.Advance(-back)
	_, err := w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
	w.wantFork(t, countersign.CodeOf(err), id)
}

// neighbor is another node on the same database, whose clock is ahead of w's.
func (w *world) neighbor(t *testing.T, ahead time.Duration) *world {
	t.Helper()
	n := &world{clock: kit.NewClock(w.clock.Now().Add(ahead))}
	log := slog.New(slog.DiscardHandler)
	authority, err := ca.Open(t.Context(), ca.Options{
		DB: w.DB, Keys: w.CA.Keys, Now: n.clock.Now, Log: log, StatusURL: "http://status.example.net",
	})
	if err != nil {
		t.Fatal(err)
	}
	events := &event.Log{DB: w.DB, Now: n.clock.Now, Log: log, Node: "neighbor", Cut: n.cut}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = events.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	reg := &registry.Registry{DB: w.DB, Now: n.clock.Now}
	n.Authority = &ra.Authority{
		DB: w.DB, CA: authority, Registry: reg, Access: kit.Must(access.New(events, authority, reg, w.Sealer)), Ledger: &lockout.Ledger{Now: n.clock.Now},
		Events: events, Now: n.clock.Now, Log: log, Sealer: w.Sealer, Secret: w.Secret,
	}
	return n
}

// conclusive asks until the answer is not that another request was served meanwhile,
// which a node says while it may not yet have seen what its neighbor recorded.
func conclusive(t *testing.T, ask func() error) error {
	t.Helper()
	var err error
	for range 50 {
		if err = ask(); countersign.CodeOf(err) != countersign.Conflict {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// TestNodesWithOtherClocksAgreeOnTheOrder: a node that is an hour ahead must not let
// a clone go undetected at the others for an hour, nor keep a device from its own.
func TestNodesWithOtherClocksAgreeOnTheOrder(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"ahead": back, "behind": -back} {
		t.Run(name, func(t *testing.T) {
			db := storetest.OpenURL(t, storetest.PostgresURL(t))
			w := newWorld(t, db)
			w.clock.Advance(24 * time.Hour)
			old, other := w.active(t, "pump-1"), w.active(t, "pump-2")
			w.clock.Advance(2 * back) // the certificates are valid by both clocks
			n := w.neighbor(t, ahead)

			n.use(t, n.renew(t, old, kit.Key(t)))
			err := conclusive(t, func() error {
				_, err := w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
				return err
			})
			w.wantFork(t, countersign.CodeOf(err), "pump-1")

			n.renew(t, other, kit.Key(t)) // and loses the key before using it
			err = conclusive(t, func() error {
				_, err := w.Reenroll(t.Context(), renewal(t, other, kit.Key(t)))
				return err
			})
			if err != nil {
				t.Errorf("asking again for the certificate of a lost key at the other node: %v", err)
			}

			before := w.token(t, registry.Credential{Device: "pump-3", UsesMax: 9})
			w.active(t, "pump-3")
			if _, err := n.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-3", Reason: countersign.KeyCompromise}); err != nil {
				t.Fatal(err)
			}
			for _, node := range []*world{w, n} {
				_, err = node.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-3", before))
				kit.WantCode(t, err, countersign.NotAllowed)
			}
			w.use(t, w.readmitted(t, "pump-3"))
		})
	}
}

// TestAClosedSerialBlockCostsNoRequest: where another node closed the block that this
// one draws from, the certificate gets a serial of another block.
func TestAClosedSerialBlockCostsNoRequest(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		closeBlocks := func() {
			write(t, w.DB, func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE serial_block SET state = 'void'`)
				return err
			})
		}
		closeBlocks()
		cert := w.active(t, "pump-1")
		closeBlocks()
		w.use(t, w.renew(t, cert, kit.Key(t)))
		closeBlocks()
		if _, _, err := w.CA.IssueIntroducer(t.Context(), ca.IssuingID, kit.Key(t).Public()); err != nil {
			t.Error(err)
		}
	})
}
