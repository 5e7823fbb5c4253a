package mqtt_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestAFullDatabaseIsAnswered has the database take no more: what is to be stored is
// refused in the words of each version, and everything else goes on.
func TestAFullDatabaseIsAnswered(t *testing.T) {
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now, Log: quiet(), MaxBytes: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	e := coreOn(t, db, broker.Limits{RetainedOctets: 1 << 30, Retained: 1 << 20})
	// At the end it may have no room for the ends of sessions, and says so.
	t.Cleanup(func() { _ = e.core.Close(context.Background()) })
	v4, v5 := everything(t, e)
	hears := v5.plain(":h")
	hears.sub(0, "c/live")
	d := v5.plain("")
	retain := func(d *device, i, size int) {
		m := d.message(1, 7, fmt.Sprint("c/kept/", i), strings.Repeat("x", size))
		m[0] |= 1
		d.send(m)
	}
	n := 0
	for size := 64 << 10; size > 0; n++ { // smaller and smaller ones
		retain(d, n, size)
		p := d.pull("PUBACK", func(p packet) bool { return p.kind == 0x40 })
		if len(p.body) > 2 {
			if p.body[2] != 0x80 {
				t.Fatalf("PUBACK: got % x, want 0x80", p.body)
			}
			size /= 2
		}
	}
	d.put(2, false, "c/live", "what nobody has to keep")
	hears.gets("what nobody has to keep")
	old := v4.plain(":old")
	retain(old, n, 64<<10)
	old.gone("a message that cannot be stored, 3.1.1", 0)
	for _, c := range []*trial{v4, v5} {
		code := map[byte]byte{4: 3, 5: 0x88}[c.level]
		refused := false
		for i := 0; i < 2000 && !refused; i++ { // small rows find room for a while
			s := c.conn(fmt.Sprint(":", i))
			s.send(c.connect(opening{suffix: fmt.Sprint(":", i), keep: true}))
			_, body := s.recv()
			if refused = body[1] != 0; refused && body[1] != code {
				t.Errorf("level %d: CONNACK %#x, want %#x", c.level, body[1], code)
			}
			_ = s.raw.Close()
		}
		if !refused {
			t.Errorf("level %d: the database took 2000 sessions", c.level)
		}
	}
	c := v4.plain(":clean")
	c.put(1, false, "c/live", "still")
	hears.gets("still")
}
