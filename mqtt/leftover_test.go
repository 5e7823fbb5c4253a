package mqtt_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

// stall has nothing written until release is called.
func (g *gateway) stall(t testing.TB) (release func()) {
	t.Helper()
	begun, end, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- g.db.Write(context.WithoutCancel(t.Context()), func(context.Context, *store.Tx) error {
			close(begun)
			<-end
			return nil
		})
	}()
	<-begun
	return func() {
		close(end)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestARevocationDuringConnectLeavesNoSession has the device revoked when its CONNECT was
// admitted and has not reached the core yet, because the connection before it ends late.
func TestARevocationDuringConnectLeavesNoSession(t *testing.T) {
	g := start(t, engine{})
	d, inbox, _ := g.inbox(t)
	d.send(d.subscribe(1, inbox+"#"))
	d.recv()
	release := g.stall(t) // the end of the subscription to the inbox waits for it
	again := g.dial(t, "dev")
	again.send(connect5(0, props([]byte{0x11, 0, 0, 1, 0})))
	kit.Eventually(t, "the second connection is admitted", func() bool { return len(g.Index.Sessions()) == 2 })
	g.Index.Cut(countersign.Cut{Device: "dev", Reason: "compromised"})
	g.Broker.Forget("dev")
	release()
	kit.Eventually(t, "both connections end", func() bool { return g.Index.Len() == 0 && g.Stats().Open == 0 })
	if u := g.usage(t, 1); len(u) > 0 {
		t.Errorf("sessions of the revoked device: got %+v, want none", u)
	}
	if _, _, present := g.inbox(t); present {
		t.Error("the device's next life has a session of its former one")
	}
}

// TestInboxesOfFormerConnectionsAreDropped kills the server again and again while a kept
// session has subscribed to its inbox: each connection has another one.
func TestInboxesOfFormerConnectionsAreDropped(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()}
	for round := range 3 {
		t.Run(fmt.Sprintf("start %d", round), func(t *testing.T) {
			g := start(t, coreIn(t, dirs[round]))
			d, inbox, present := g.inbox(t)
			if present != (round > 0) {
				t.Fatalf("Session Present: got %t", present)
			}
			d.send(d.subscribe(1, "devices/dev/down/#", inbox+"#", "$share/g/"+inbox+"x"))
			d.expect("SUBACK", []byte{0x90, 6, 0, 1, 0, 1, 1, 1})
			if u := g.usage(t, 1); u[0].Subscriptions != 3 {
				t.Errorf("subscriptions: got %d, want 3", u[0].Subscriptions)
			}
			// The folder as a kill would leave it.
			if err := os.CopyFS(dirs[round+1], os.DirFS(dirs[round])); err != nil {
				t.Fatal(err)
			}
		})
	}
}
