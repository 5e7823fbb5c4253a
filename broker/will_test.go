package broker_test

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
)

// clocked is a core in a bubble of synctest, whose time passes at once.
type clocked struct {
	*testing.T
	db *store.DB
	b  *broker.Broker
}

// inTime runs a test on a core over SQLite whose clock goes on as soon as all wait.
func inTime(t *testing.T, limits broker.Limits, run func(c *clocked)) {
	url := "sqlite:" + t.TempDir() + "/countersign.db"
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), store.Options{URL: url, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c := &clocked{T: t, db: db, b: open(t, db, limits)}
		defer func() {
			_ = c.b.Close(t.Context())
			_ = c.db.Close()
		}()
		run(c)
	})
}

// again closes the core and opens it anew.
func (c *clocked) again() {
	if err := c.b.Close(c.Context()); err != nil {
		c.Fatal(err)
	}
	c.b = open(c, c.db, broker.Limits{})
}

// watch subscribes a client of its own to everything.
func (c *clocked) watch() *client {
	w := connect(c, c.b, clean("watch"))
	s := filter("#", 2)
	s.AsPublished = true
	w.subscribe(s)
	return w
}

// passes lets time pass, and what is due then happen.
func (c *clocked) passes(d time.Duration) {
	time.Sleep(d)
	time.Sleep(time.Second / 2) // the record, too
	synctest.Wait()
}

func (c *client) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.texts()
}

// TestWills holds MQTT 5, 3.1.2.5 and 3.1.3.2.2.
func TestWills(t *testing.T) {
	hello := func(delay, expiry time.Duration) broker.Hello {
		h := broker.Hello{ClientID: "s", Device: "s", Expiry: expiry, Kept: 4}
		h.Will = &broker.Will{Message: broker.Message{Topic: "w", Payload: []byte("will"), QoS: 1, Device: "s"}, Delay: delay}
		return h
	}
	zero := time.Duration(0)
	none := func(*clocked, *client) {}
	lost := func(_ *clocked, s *client) { s.conn.Close(true, nil) }
	resume := func(c *clocked) {
		connect(c, c.b, broker.Hello{ClientID: "s", Device: "s", Expiry: time.Hour, Kept: 4})
	}
	for name, tc := range map[string]struct {
		h          broker.Hello
		end        func(c *clocked, s *client)
		soon       bool // published within a second
		then       func(c *clocked)
		after      time.Duration
		eventually bool
	}{
		"none while connected":                 {hello(0, time.Hour), none, false, nil, time.Hour, false},
		"no delay":                             {hello(0, time.Hour), lost, true, nil, 0, true},
		"DISCONNECT":                           {hello(0, time.Hour), func(_ *clocked, s *client) { s.conn.Close(false, nil) }, false, nil, 2 * time.Hour, false},
		"delay is over":                        {hello(time.Minute, time.Hour), lost, false, nil, time.Minute, true},
		"resumed before":                       {hello(time.Minute, time.Hour), lost, false, resume, time.Hour, false},
		"resumed after":                        {hello(time.Minute, time.Hour), lost, false, func(c *clocked) { c.passes(time.Minute); resume(c) }, 0, true},
		"session ends before":                  {hello(time.Hour, time.Minute), lost, false, nil, time.Minute, true},
		"session ends at DISCONNECT with will": {hello(time.Hour, time.Hour), func(_ *clocked, s *client) { s.conn.Close(true, &zero) }, true, nil, 0, true},
		"no session":                           {hello(time.Hour, 0), lost, true, nil, 0, true},
		"taken over, no delay":                 {hello(0, time.Hour), func(c *clocked, _ *client) { resume(c) }, true, nil, 0, true},
		"taken over, delay":                    {hello(time.Minute, time.Hour), func(c *clocked, _ *client) { resume(c) }, false, nil, time.Hour, false},
		"taken over clean":                     {hello(time.Minute, time.Hour), func(c *clocked, _ *client) { connect(c, c.b, clean("s")) }, true, nil, 0, true},
		"clean after":                          {hello(time.Minute, time.Hour), lost, false, func(c *clocked) { connect(c, c.b, clean("s")) }, 0, true},
		"taken over by another device": {hello(time.Minute, time.Hour), func(c *clocked, _ *client) {
			connect(c, c.b, broker.Hello{ClientID: "s", Device: "other", Expiry: time.Hour})
		}, true, nil, 0, true},
		"restart":               {hello(time.Minute, time.Hour), lost, false, nil, -time.Minute, true},
		"restart, after it":     {hello(time.Minute, time.Hour), lost, true, func(c *clocked) { c.passes(time.Minute) }, -time.Second, true},
		"restart, session over": {hello(time.Hour, time.Minute), lost, false, nil, -time.Minute, true},
		"suspended":             {hello(time.Minute, time.Hour), func(c *clocked, s *client) { s.conn.Close(true, nil); c.b.DropWills("s") }, false, nil, time.Hour, false},
		"suspended, restart":    {hello(time.Minute, time.Hour), func(c *clocked, s *client) { s.conn.Close(true, nil); c.b.DropWills("s") }, false, nil, -time.Hour, false},
		"purged":                {hello(time.Minute, time.Hour), func(c *clocked, s *client) { s.conn.Close(true, nil); c.b.Forget("s") }, false, nil, time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, broker.Limits{}, func(c *clocked) {
				keeper := connect(c, c.b, kept("keeper")) // has it over a restart
				keeper.subscribe(filter("w", 1))
				keeper.conn.Close(false, nil)
				w := c.watch()
				s := connect(c, c.b, tc.h)
				tc.end(c, s)
				c.passes(time.Second)
				if name != "restart, after it" {
					if got := slices.Contains(w.all(), "will"); got != tc.soon {
						c.Fatalf("at once: got the will published %t, want %t", got, tc.soon)
					}
				}
				if tc.then != nil {
					tc.then(c)
				}
				if tc.after < 0 {
					c.again()
					w = c.watch()
					tc.after = -tc.after
				}
				c.passes(tc.after)
				keeper = connect(c, c.b, kept("keeper"))
				c.passes(time.Second)
				want := map[bool]int{true: 1}[tc.eventually]
				if got := len(keeper.all()); got != want {
					c.Errorf("wills that a kept session has: got %d, want %d", got, want)
				}
				if name != "restart, after it" && len(w.all()) != want {
					c.Errorf("wills that a connected client has: got %d, want %d", len(w.all()), want)
				}
			})
		})
	}
}

// TestWhatACrashChanges holds the departures from both standards that docs/protocols/mqtt.md
// names: the core stops with a session that is connected.
func TestWhatACrashChanges(t *testing.T) {
	inTime(t, broker.Limits{}, func(c *clocked) {
		keeper := connect(c, c.b, kept("keeper"))
		keeper.subscribe(filter("w", 1))
		keeper.conn.Close(false, nil)
		h := kept("s")
		h.Will = &broker.Will{Message: broker.Message{Topic: "w", Payload: []byte("will"), QoS: 1, Device: "s"}}
		s := connectAs(c, c.b, h, &client{hold: true, room: 1})
		s.subscribe(filter("x", 1))
		p := connect(c, c.b, clean("p"))
		for i, life := range []time.Duration{time.Hour, time.Minute, time.Hour} { // the first one is sent
			m := &broker.Message{Topic: "x", Payload: []byte{'a' + byte(i)}, QoS: 1, Device: "p", Expires: time.Now().Add(life)}
			if err := p.conn.Publish(m, uint16(i)+1); err != nil {
				c.Fatal(err)
			}
		}
		c.passes(time.Second)
		c.again()
		c.passes(2 * time.Minute)
		s = connect(c, c.b, kept("s"))
		c.passes(time.Second)
		var got []string
		for _, d := range s.got {
			got = append(got, fmt.Sprintf("%s dup=%t", d.Payload, d.Dup))
		}
		if want := []string{"a dup=true", "b dup=true", "c dup=true"}; !slices.Equal(got, want) {
			c.Errorf("got %q, want %q: what was sent before the crash is not on record", got, want)
		}
		keeper = connect(c, c.b, kept("keeper"))
		c.passes(time.Second)
		if got := keeper.all(); len(got) != 0 {
			c.Errorf("got %q, want no will: that of a connected session is not on record", got)
		}
	})
}

// A will may be retained, lives as long as it is to, and is recorded with what it ends.
func TestAWillIsAMessage(t *testing.T) {
	inTime(t, broker.Limits{}, func(c *clocked) {
		h := kept("s")
		h.Will = &broker.Will{
			Message: broker.Message{Topic: "w", Payload: []byte("will"), QoS: 1, Retain: true, Device: "s"},
			Delay:   time.Hour / 2, Life: time.Minute,
		}
		connect(c, c.b, h).conn.Close(true, nil)
		c.passes(time.Hour / 2)
		w := c.watch()
		c.passes(time.Second)
		if got := w.all(); len(got) != 1 || !w.got[0].Retain || w.got[0].Expires.IsZero() {
			t.Fatalf("got %q, want the retained will with an expiry", got)
		}
		w.conn.Close(false, nil)
		c.passes(time.Minute)
		if got := c.watch(); len(got.all()) != 0 {
			t.Errorf("after its life: got %q, want nothing", got.all())
		}
	})
}

// TestSessionExpiry holds MQTT 5, 3.1.2.11.2 and 3.14.2.2.2.
func TestSessionExpiry(t *testing.T) {
	minute, long := time.Minute, 10*365*24*time.Hour
	for name, tc := range map[string]struct {
		expiry  time.Duration
		atEnd   *time.Duration
		away    time.Duration
		restart bool
		crash   bool
		present bool
	}{
		"within":                    {expiry: time.Hour, away: 59 * time.Minute, present: true},
		"after":                     {expiry: time.Hour, away: time.Hour},
		"shorter at DISCONNECT":     {expiry: time.Hour, atEnd: &minute, away: 2 * time.Minute},
		"ended at DISCONNECT":       {expiry: time.Hour, atEnd: new(time.Duration)},
		"longer than the limit":     {expiry: long, atEnd: &long, away: broker.DefaultExpiry + time.Minute},
		"within, over a restart":    {expiry: time.Hour, away: 59 * time.Minute, restart: true, present: true},
		"after, over a restart":     {expiry: time.Hour, away: time.Hour, restart: true},
		"connected when it crashed": {expiry: time.Hour, away: 59 * time.Minute, crash: true, present: true},
		"away since it crashed":     {expiry: time.Hour, away: time.Hour + time.Second, crash: true},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, broker.Limits{}, func(c *clocked) {
				h := kept("s")
				h.Expiry = tc.expiry
				s := connect(c, c.b, h)
				s.subscribe(filter("x", 1))
				if tc.crash {
					c.again() // with the connection
				} else {
					s.conn.Close(false, tc.atEnd)
				}
				c.passes(tc.away / 2)
				if tc.restart {
					c.again()
				}
				c.passes(tc.away - tc.away/2 - time.Second/2)
				if s = connect(c, c.b, h); s.present != tc.present {
					c.Errorf("got session present %t, want %t", s.present, tc.present)
				}
				if got := total(c, c.b).Subscriptions == 1; got != tc.present {
					c.Errorf("got its subscription there %t, want %t", got, tc.present)
				}
				s.conn.Close(false, new(time.Duration))
				c.passes(time.Second)
				empty(c.T, c.b, c.db)
			})
		})
	}
}

// TestMessageExpiry holds MQTT 5, 3.3.2.3.3.
func TestMessageExpiry(t *testing.T) {
	inTime(t, broker.Limits{Retained: 1}, func(c *clocked) {
		s := connectAs(c, c.b, kept("s"), &client{hold: true, room: 1})
		s.subscribe(filter("x", 2))
		p := connect(c, c.b, clean("p"))
		for i, life := range []time.Duration{time.Minute, time.Minute, time.Hour} {
			m := &broker.Message{Topic: "x", Payload: []byte{'a' + byte(i)}, QoS: 2, Device: "p", Expires: time.Now().Add(life)}
			if err := p.conn.Publish(m, uint16(i)+1); err != nil {
				c.Fatal(err)
			}
		}
		c.passes(time.Second)
		if got := s.all(); !slices.Equal(got, []string{"a"}) {
			t.Fatalf("got %q, want the first message", got)
		}
		c.again() // a was sent, and may be in the hands of the client: it comes again
		c.passes(time.Minute)
		s = connectAs(c, c.b, kept("s"), &client{hold: true})
		c.passes(time.Second)
		if got := s.all(); !slices.Equal(got, []string{"a", "b", "c"}) && !slices.Equal(got, []string{"a", "c"}) {
			t.Errorf("got %q, want what was sent and what has not expired", got)
		}
		p = connect(c, c.b, clean("p"))
		retain := func(topic string) byte {
			m := &broker.Message{Topic: topic, Payload: []byte("r"), QoS: 1, Retain: true, Device: "p", Expires: time.Now().Add(time.Minute)}
			p.acks = nil
			if err := p.conn.Publish(m, 1); err != nil {
				c.Fatal(err)
			}
			c.passes(time.Second)
			return p.acks[0][len(p.acks[0])-1]
		}
		if retain("$r/1") != '0' {
			t.Error("the first retained message: got it refused")
		}
		c.passes(time.Minute)
		w := connect(c, c.b, clean("w"))
		w.subscribe(filter("$r/#", 1))
		c.passes(11 * time.Minute)
		if len(w.all()) != 0 {
			t.Errorf("got %q, want no expired message", w.all())
		}
		if got := usage(c, c.b, "p").Retained; got != 0 {
			t.Errorf("retained messages of the device: got %d, want none", got)
		}
	})
}
