package broker

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store/storetest"
)

// A receiver of the node that takes no message holds up neither the others nor the end.
func TestCloseWaitsForNoReceiver(t *testing.T) {
	b, err := Open(t.Context(), Options{DB: storetest.Open(t), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	busy := make(chan struct{})
	if err := b.Listen(ctx, "x", func(*Message) { close(busy); <-ctx.Done() }); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(ctx, &Message{Topic: "x"}); err != nil {
		t.Fatal(err)
	}
	<-busy
	closed := make(chan error, 1)
	go func() { closed <- b.Close(ctx) }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the broker waits for a receiver that takes nothing")
	}
}
