package broker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/topics"
)

// naive reports whether a filter matches a topic, level by level (MQTT 5, 4.7).
func naive(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		switch {
		case level == "#":
			return true
		case i >= len(t) || level != "+" && level != t[i]:
			return false
		}
	}
	return len(f) == len(t)
}

// FuzzTree has filters added, replaced and removed, one a line ("-" removes), and holds
// what a topic meets against naive; so for the retained message of the topic.
func FuzzTree(f *testing.F) {
	f.Add("a/b\n#\n+/b\n-#\n$share/g/a/#\na/b/#", "a/b")
	f.Add("#\n+/x\n$s/#\n+", "$s/x")
	f.Add("/\n//\n+/+\n/+\n-/", "/")
	f.Add("$share/g/a\n$share/g/a\n-$share/g/a\n$share/h/a\na", "a")
	f.Fuzz(func(t *testing.T, script, topic string) {
		if !topics.ValidName(topic) || levels(topic) > maxLevels {
			return
		}
		var tr tree
		live := map[string]*subscription{}
		for line := range strings.SplitSeq(script, "\n") {
			filter, removes := strings.CutPrefix(line, "-")
			if !topics.ValidFilter(filter) || levels(filter) > maxLevels {
				continue
			}
			old := live[filter]
			if removes {
				if old != nil {
					tr.remove(old)
					delete(live, filter)
				}
				continue
			}
			live[filter] = &subscription{Subscription: Subscription{Filter: filter}, s: &session{}}
			tr.replace(old, live[filter])
		}
		var want []string
		for filter := range live {
			inner, _, _ := topics.Shared(filter)
			if naive(inner, topic) {
				want = append(want, filter)
			}
		}
		var h hits
		tr.match(topic, &h)
		var got []string
		for _, sub := range h.subs {
			got = append(got, sub.Filter)
			if live[sub.Filter] != sub {
				t.Errorf("%q: got a subscription that was replaced", sub.Filter)
			}
		}
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%q: got the filters %q, want %q", topic, got, want)
		}
		fuzzRetained(t, live, topic)
		for _, sub := range live {
			tr.remove(sub)
		}
		if len(tr.root.children) > 0 {
			t.Errorf("an empty tree has %d levels", len(tr.root.children))
		}
	})
}

func fuzzRetained(t *testing.T, filters map[string]*subscription, topic string) {
	var r retained
	a := &account{}
	m, other, end := &Message{Topic: topic, Payload: []byte{1}}, &Message{Topic: topic + "/x", Payload: []byte{1}}, &Message{Topic: topic, QoS: 1}
	r.announce(m)
	r.set(other, a)
	for _, recorded := range []bool{false, true} {
		for filter := range filters {
			inner, _, _ := topics.Shared(filter)
			found := r.match(inner)
			if got := slices.Contains(found, m); got != naive(inner, topic) {
				t.Errorf("%q: got the retained message of %q %t", filter, topic, got)
			}
			if got := slices.Contains(found, other); got != naive(inner, other.Topic) {
				t.Errorf("%q: got the retained message of %q %t", filter, other.Topic, got)
			}
		}
		if !recorded {
			r.set(m, a)
		}
	}
	if !r.announce(end) || r.get(topic) != nil {
		t.Error("the retained message is shown after its end was announced")
	}
	if r.cancel(end); r.get(topic) != m {
		t.Error("the retained message is not shown although its end was not recorded")
	}
	if old, owner := r.set(end, nil); old != m || owner != a {
		t.Error("the end of the retained message: got another one")
	}
	if _, ok := r.drop(other); !ok || len(r.root.children) > 0 {
		t.Error("an empty tree of retained messages has levels")
	}
}

// FuzzRestore opens a core on rows with odd values: it is opened or not, but does not
// stop, and what it has can be purged.
func FuzzRestore(f *testing.F) {
	f.Add("c", int64(60), int64(0), int64(3), []byte(nil), int64(0), "a/#", int64(1), int64(1), int64(1), int64(7))
	f.Add("c", int64(-1), int64(-5), int64(-3), []byte("{"), int64(-1), "", int64(255), int64(-1), int64(-2), int64(-7))
	f.Add("", int64(1<<62), int64(1<<62), int64(1<<62), []byte(`{"Topic":"w","QoS":9,"Delay":-1}`), int64(1), "#/#", int64(3), int64(1<<40), int64(1<<62), int64(70000))
	db := storetest.Open(f)
	f.Fuzz(func(t *testing.T, client string, expiry, left, sent int64, will []byte, willAt int64, filter string, options, subID, seq, packet int64) {
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			for _, q := range []struct {
				text string
				args []any
			}{
				{
					`INSERT INTO mqtt_session (id, node, client, device, expiry, left_at, sent, will, will_at) VALUES (1, 'one', $1, 'd', $2, $3, $4, $5, $6)`,
					[]any{client, expiry, left, sent, will, willAt},
				},
				{`INSERT INTO mqtt_subscription (session, n, filter, options, sub_id) VALUES (1, $1, $2, $3, $4)`, []any{seq, filter, options, subID}},
				{`INSERT INTO mqtt_queue (session, seq, upto, n, qos, retain, expires, topic, props, payload, sub_ids, more, octets)
					VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8, $8, $9, $9, 200)`, []any{seq, seq + sent, sent, options % 3, options, willAt, filter, some(will), some(will)}},
				{`INSERT INTO mqtt_mark (session, seq, upto, gone) VALUES (1, $1, $2, $3)`, []any{seq, seq + sent, options & 1}},
				{`INSERT INTO mqtt_inbound (session, packet) VALUES (1, $1)`, []any{packet}},
				{
					`INSERT INTO mqtt_retained (node, hash, topic, device, qos, expires, props, payload) VALUES ('one', $1, $2, 'd', $3, $4, $5, $5)`,
					[]any{[]byte{1}, filter, options & 3, willAt, some(will)},
				},
			} {
				if _, err := tx.Exec(ctx, q.text, q.args...); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return // the database takes no such rows
		}
		b, err := Open(t.Context(), Options{DB: db, Node: "one", Log: slog.New(slog.DiscardHandler), Now: time.Now})
		if err == nil {
			c, _, err := b.Connect(t.Context(), Hello{ClientID: client, Device: "d", Expiry: time.Hour, Kept: 1}, &silent{})
			if err != nil {
				t.Fatal(err)
			}
			c.Start()
			c.Subscribe(t.Context(), []Subscription{{Filter: "#", QoS: 1}})
			c.Retained()
			c.Close(true, nil)
		}
		if err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return Erase(ctx, tx, "d") }); err != nil {
			t.Fatal(err)
		}
		if b != nil {
			b.Forget("d")
			if err := b.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if n := b.queued.Load() + b.queuedOctets.Load() + b.retainedCount.Load() + b.retainedOctets.Load(); n != 0 || len(b.accounts) > 0 {
				t.Errorf("after the purge: got %d messages and octets, %d accounts", n, len(b.accounts))
			}
		}
		for _, table := range []string{"session", "subscription", "queue", "inbound", "retained"} {
			var n int
			if err := db.QueryRow(t.Context(), fmt.Sprintf(`SELECT count(*) FROM mqtt_%s`, table)).Scan(&n); err != nil || n > 0 {
				t.Errorf("mqtt_%s: got %d rows, %v", table, n, err)
			}
		}
	})
}
