package interop

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/topics"
)

// history is what clients did and what they were answered.
type history struct {
	mu    sync.Mutex
	acts  map[string][]*act // by topic, in the order of their numbers
	lives []*life
	faded []string // what retained messages should not have been
}

// life is one session of a subscriber, from its clean start to the next one.
type life struct {
	name    string
	filters []packets.SubOptions

	// Guarded by the history's lock.
	since time.Time // SUBACK; zero: it did not come
	over  bool      // a clean start has ended it, or may have
	conns int
	got   []received
}

// received is one message as its receiver has it: a PUBLISH of QoS 2 whose identifier
// still waits for PUBREL is the same message again, and not here.
type received struct {
	topic string
	n     int
	qos   byte
}

func newHistory() *history { return &history{acts: map[string][]*act{}} }

// begin notes that an act is about to be sent for the first time.
func (h *history) begin(a *act) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a.began = time.Now()
	h.acts[a.topic] = append(h.acts[a.topic], a)
}

func (h *history) acknowledge(a *act, released bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.fate == unknown {
		a.fate, a.ended = acknowledged, time.Now()
	}
	a.released = a.released || released
}

func (h *history) refuse(a *act) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a.fate, a.ended = refused, time.Now()
}

// qos is with what QoS the session receives an act; ok is false if it does not.
func (l *life) qos(a *act) (qos byte, ok bool) {
	for _, f := range l.filters {
		if topics.Covers(f.Topic, a.topic) {
			ok, qos = true, max(qos, min(f.QoS, a.qos))
		}
	}
	return qos, ok && qos > 0
}

// owed returns the acts that the session must have received by now and has not: those
// that were acknowledged, and sent after its SUBACK.
func (h *history) owed() (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lives {
		if l.over {
			continue
		}
		if l.since.IsZero() {
			list = append(list, l.name+": was never subscribed")
			continue
		}
		seen := map[string]map[int]bool{}
		for _, r := range l.got {
			if seen[r.topic] == nil {
				seen[r.topic] = map[int]bool{}
			}
			seen[r.topic][r.n] = true
		}
		for topic, acts := range h.acts {
			for _, a := range acts {
				if _, ok := l.qos(a); ok && a.fate == acknowledged && a.began.After(l.since) && !seen[topic][a.n] {
					list = append(list, fmt.Sprintf("%s: lost %s %d", l.name, topic, a.n))
				}
			}
		}
	}
	return list
}

// faults returns everything that the history of a broker must not have.
func (h *history) faults() []string {
	list := append(h.owed(), h.faded...)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lives {
		byTopic := map[string][]received{}
		for _, r := range l.got {
			byTopic[r.topic] = append(byTopic[r.topic], r)
		}
		for topic, got := range byTopic {
			for _, f := range h.stream(l, h.acts[topic], got) {
				list = append(list, fmt.Sprintf("%s: %s: %s", l.name, topic, f))
			}
		}
	}
	return list
}

// stream checks what one session received of one topic, which one publisher has.
func (h *history) stream(l *life, acts []*act, got []received) (list []string) {
	fault := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	copies, last := map[int]int{}, -1
	for _, r := range got {
		if r.n >= len(acts) {
			fault("%d was received and never sent", r.n)
			continue
		}
		a := acts[r.n]
		want, ok := l.qos(a)
		if !ok || r.qos != want {
			fault("%d was received with QoS %d, want %d", r.n, r.qos, want)
		}
		copies[r.n]++
		if copies[r.n] > 1 || a.fate == refused {
			continue
		}
		// What was sent before SUBACK may have missed the subscription, and came when its
		// publisher sent it again, after what it had sent since.
		if again := a.sends > 1 && a.began.Before(l.since); r.n < last && !again {
			fault("%d was first received after %d", r.n, last)
		}
		// Between two that were received none may be missing, also in a session that has ended.
		for n := last + 1; n < r.n && last >= 0; n++ {
			if acts[n].fate == acknowledged && copies[n] == 0 {
				fault("%d is missing between %d and %d", n, last, r.n)
			}
		}
		last = max(last, r.n)
	}
	for n, c := range copies {
		a := acts[n]
		qos, _ := l.qos(a)
		most := 1
		if qos == 1 {
			most = l.conns
			if a.qos == 1 {
				most *= a.sends
			}
		}
		if c > most {
			fault("%d of QoS %d came %d times, want %d at most", n, qos, c, most)
		}
	}
	return list
}

// retained checks what a new subscriber found retained, by topic, when it subscribed
// between two moments: the last acknowledged value, or one that was sent after it.
func (h *history) retained(from, to time.Time, found map[string]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for topic, acts := range h.acts {
		if len(acts) == 0 || !acts[0].retain {
			continue
		}
		allowed := map[string]bool{"": true} // nothing, before the first
		for _, a := range acts {
			if a.began.After(to) {
				break
			}
			if a.fate == acknowledged && a.ended.Before(from) {
				clear(allowed)
			}
			allowed[a.payload] = true
		}
		if v := found[topic]; !allowed[v] {
			h.faded = append(h.faded, fmt.Sprintf("%s: got %q retained, want one of %v", topic, v, allowed))
		}
	}
	for topic, v := range found {
		if len(h.acts[topic]) == 0 {
			h.faded = append(h.faded, fmt.Sprintf("%s: got %q retained, which was never sent", topic, v))
		}
	}
}

// count is how many acts were acknowledged, and how many refused.
func (h *history) count() (ok, no int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, acts := range h.acts {
		for _, a := range acts {
			switch a.fate {
			case acknowledged:
				ok++
			case refused:
				no++
			}
		}
	}
	return ok, no
}

// TestHistoryCheckerSeesEachFault plants faults into a history without any.
func TestHistoryCheckerSeesEachFault(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(i int) time.Time { return start.Add(time.Duration(i) * time.Second) }
	made := func() (*history, *life) {
		h := newHistory()
		for _, topic := range []string{"talk/p/1", "talk/p/2"} {
			for n := range 4 {
				h.acts[topic] = append(h.acts[topic], &act{
					topic: topic, n: n, qos: topic[len(topic)-1] - '0', fate: acknowledged, sends: 1, began: at(n + 1), ended: at(n + 2),
				})
			}
		}
		for n, v := range []string{"a", "", "b"} {
			h.acts["state/p"] = append(h.acts["state/p"], &act{topic: "state/p", n: n, qos: 1, retain: true, payload: v, fate: acknowledged, began: at(n + 1), ended: at(n + 2)})
		}
		l := &life{name: "s", filters: []packets.SubOptions{{Topic: "talk/#", QoS: 2}, {Topic: "talk/p/+", QoS: 1}}, since: at(0), conns: 1}
		for n := range 4 {
			l.got = append(l.got, received{"talk/p/1", n, 1}, received{"talk/p/2", n, 2})
		}
		h.lives = []*life{l}
		return h, l
	}
	for _, tt := range []struct {
		name, want string
		plant      func(h *history, l *life)
	}{
		{"none", "", func(h *history, _ *life) { h.retained(at(9), at(9), map[string]string{"state/p": "b"}) }},
		{"the last is lost", "lost talk/p/2 3", func(_ *history, l *life) { l.got = l.got[:7] }},
		{"one that was not acknowledged is lost", "", func(h *history, l *life) { l.got, h.acts["talk/p/2"][3].fate = l.got[:7], unknown }},
		{"one is lost in a session that has ended", "missing between", func(_ *history, l *life) { l.over, l.got = true, append(l.got[:2:2], l.got[4:]...) }},
		{"QoS 2 comes twice", "came 2 times", func(_ *history, l *life) { l.got = append(l.got, received{"talk/p/2", 3, 2}) }},
		{"QoS 1 comes twice without a reason", "came 2 times", func(_ *history, l *life) { l.got = append(l.got, received{"talk/p/1", 3, 1}) }},
		{"QoS 1 comes twice after a reconnect", "", func(_ *history, l *life) {
			l.conns, l.got = 2, append(l.got, received{"talk/p/1", 2, 1}, received{"talk/p/1", 3, 1})
		}},
		{"two are swapped", "first received after", func(_ *history, l *life) { l.got[2], l.got[4] = l.got[4], l.got[2] }},
		{"the first was sent again and met a new subscription", "", func(h *history, l *life) {
			l.since, h.acts["talk/p/1"][0].sends = at(1).Add(1), 2
			l.got[0], l.got[2] = l.got[2], l.got[0]
		}},
		{"the second was sent again and met a new subscription", "first received after", func(h *history, l *life) {
			l.since, h.acts["talk/p/1"][1].sends = at(1).Add(1), 2
			l.got[0], l.got[2] = l.got[2], l.got[0]
		}},
		{"with less QoS", "with QoS 1, want 2", func(_ *history, l *life) { l.got[3].qos = 1 }},
		{"out of nothing", "never sent", func(_ *history, l *life) { l.got = append(l.got, received{"talk/p/2", 9, 2}) }},
		{"an old value is retained", `got "a" retained`, func(h *history, _ *life) { h.retained(at(9), at(9), map[string]string{"state/p": "a"}) }},
		{"the retained value is lost", `got "" retained`, func(h *history, _ *life) { h.retained(at(9), at(9), nil) }},
		{"a removal is under way", "", func(h *history, _ *life) { h.retained(at(2).Add(1), at(3), nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, l := made()
			for _, a := range h.acts["state/p"] { // the session has no filter for it
				a.topic = "state/p"
			}
			tt.plant(h, l)
			if got := strings.Join(h.faults(), "\n"); tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got faults %q, want %q", got, tt.want)
			}
		})
	}
}
