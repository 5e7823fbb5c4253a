package broker_test

import (
	"context"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store/storetest"
)

// A second process with the name of the node takes over its rows: from its next write, or
// question, on the first one serves no kept session, says so, and serves all others.
func TestADisplacedNodeServesNoKeptSession(t *testing.T) {
	for name, notice := range map[string]func(t *testing.T, b *broker.Broker, p *client){
		"by a write": func(_ *testing.T, _ *broker.Broker, p *client) {
			p.publish("x", "m", 1, 1)
			p.answered("4 1 0x80")
		},
		"by a question": func(t *testing.T, b *broker.Broker, _ *client) {
			if err := b.Owned(t.Context()); countersign.CodeOf(err) != countersign.Conflict {
				t.Errorf("Owned of the older process: got %v, want a conflict", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := storetest.OpenURL(t, storetest.PostgresURL(t))
			older := open(t, db, broker.Limits{})
			defer func() { _ = older.Close(context.Background()) }()
			s := connect(t, older, kept("s"))
			s.subscribe(filter("x", 1))
			p := connect(t, older, clean("p"))
			if err := older.Owned(t.Context()); err != nil {
				t.Fatalf("Owned: %v", err)
			}
			newer := open(t, db, broker.Limits{})
			defer func() { _ = newer.Close(context.Background()) }()
			notice(t, older, p)
			s.until("the end of the kept session", func() bool { return s.lost == "0x80" })
			s.conn.Close(true, nil)
			if _, _, err := older.Connect(t.Context(), kept("s"), &client{}); countersign.CodeOf(err) != countersign.Conflict {
				t.Errorf("resuming on the older process: got %v, want a conflict", err)
			}
			q := connect(t, older, clean("q"))
			q.subscribe(filter("y", 1))
			p.publish("y", "clean", 1, 2)
			q.receives("clean")
			if p.gone() {
				t.Error("the session that is not kept was ended")
			}
			again := connect(t, newer, kept("s"))
			if !again.present {
				t.Error("the newer process does not have the session")
			}
			if err := newer.Publish(t.Context(), &broker.Message{Topic: "x", Payload: []byte("new"), QoS: 1, Expires: time.Now().Add(time.Hour)}); err != nil {
				t.Fatal(err)
			}
			again.receives("new")
			if err := newer.Owned(t.Context()); err != nil {
				t.Errorf("Owned of the newer process: %v", err)
			}
		})
	}
}
