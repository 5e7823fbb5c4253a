package mqtt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// natsSessions is the stream in which nats-server keeps MQTT sessions.
	natsSessions = "$MQTT_sess"
	// natsSweepEvery is how often sessions are looked for whose queue is gone. Queues go
	// after natsConsumerIdle, so a day more or less does not matter.
	natsSweepEvery = 24 * time.Hour
	// natsSweepTime bounds one such look: 20,000 sessions take some seconds.
	natsSweepTime = 5 * time.Minute
)

// natsRecord is what nats-server keeps of an MQTT session.
type natsRecord struct {
	ID     string                            `json:"id"`
	Subs   map[string]byte                   `json:"subs"`
	Cons   map[string]*server.ConsumerConfig `json:"cons"`
	PubRel *server.ConsumerConfig            `json:"pubrel"`
	seq    uint64
}

// eachRecord calls each for every session on record.
func eachRecord(ctx context.Context, js jetstream.JetStream, each func(jetstream.Stream, natsRecord) error) error {
	stream, err := js.Stream(ctx, natsSessions)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // no MQTT client ever came
	} else if err != nil {
		return err
	}
	for seq := uint64(1); ; seq++ {
		m, err := stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject("$MQTT.sess.>"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		seq = m.Sequence
		r := natsRecord{seq: seq}
		if json.Unmarshal(m.Data, &r) != nil {
			continue // not one of the engine's
		}
		if err := each(stream, r); err != nil {
			return err
		}
	}
}

// consumers are the consumers that the session needs, by stream.
func (r *natsRecord) consumers() map[string][]*server.ConsumerConfig {
	all := map[string][]*server.ConsumerConfig{}
	for _, c := range r.Cons {
		all[natsMessages] = append(all[natsMessages], c)
	}
	if r.PubRel != nil {
		all[natsPubrels] = append(all[natsPubrels], r.PubRel)
	}
	return all
}

// dropDeaf drops the sessions on record that would never receive a message again: a
// consumer of theirs is gone, or is kept in memory, as an earlier version had them.
// nats-server would answer Session Present to such a client and deliver nothing, and
// a new SUBSCRIBE of it would change nothing.
// index collects the others.
func (n *NATS) dropDeaf(ctx context.Context, index map[string]map[string]int) (dropped int, err error) {
	js, done, err := n.jetstream()
	if err != nil {
		return 0, err
	}
	defer done()
	exists := map[string]map[string]bool{}
	for _, name := range []string{natsMessages, natsPubrels} {
		if exists[name], err = consumerNames(ctx, js, name); err != nil {
			return 0, err
		}
	}
	err = eachRecord(ctx, js, func(records jetstream.Stream, r natsRecord) error {
		deaf := r.deaf(exists)
		if deaf { // a consumer that was made since the names were read is not among them
			if deaf, err = r.stillDeaf(ctx, js); err != nil {
				return err
			}
		}
		if !deaf {
			if device, _, ok := strings.Cut(r.ID, "-"); ok && len(r.Subs) > 0 {
				if index[device] == nil {
					index[device] = map[string]int{}
				}
				index[device][r.ID] = len(r.Subs)
			}
			return nil
		}
		for stream, list := range r.consumers() {
			for _, c := range list {
				if err := js.DeleteConsumer(ctx, stream, c.Durable); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
					return err
				}
			}
		}
		// The client may have come meanwhile, with a record of its own.
		if err := records.DeleteMsg(ctx, r.seq); err != nil && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			return err
		}
		dropped++
		return nil
	})
	return dropped, err
}

// stillDeaf asks for each consumer by its name.
func (r *natsRecord) stillDeaf(ctx context.Context, js jetstream.JetStream) (bool, error) {
	for stream, list := range r.consumers() {
		for _, c := range list {
			if c.MemoryStorage {
				return true, nil
			}
			_, err := js.Consumer(ctx, stream, c.Durable)
			if errors.Is(err, jetstream.ErrConsumerNotFound) {
				return true, nil
			}
			if err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

func (r *natsRecord) deaf(exists map[string]map[string]bool) bool {
	for stream, list := range r.consumers() {
		for _, c := range list {
			if c.MemoryStorage || !exists[stream][c.Durable] {
				return true
			}
		}
	}
	return false
}

func consumerNames(ctx context.Context, js jetstream.JetStream, stream string) (map[string]bool, error) {
	names := map[string]bool{}
	s, err := js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return names, nil
	} else if err != nil {
		return nil, err
	}
	list := s.ConsumerNames(ctx)
	for name := range list.Name() {
		names[name] = true
	}
	return names, list.Err()
}

// sweepRecords drops deaf sessions. At the start, before the first client comes, it
// makes the index of Kept.
func (n *NATS) sweepRecords(start bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), natsSweepTime)
	defer cancel()
	index := map[string]map[string]int{}
	dropped, err := n.dropDeaf(ctx, index)
	if err != nil {
		return fmt.Errorf("couldn't look through the stored sessions: %w", err)
	}
	if start {
		n.mu.Lock()
		n.kept = index
		n.mu.Unlock()
	}
	if dropped > 0 {
		n.o.Log.WarnContext(ctx, "stored sessions dropped, their queues are gone", "count", dropped)
	}
	return nil
}

// keepSweeping calls sweepRecords until Close.
func (n *NATS) keepSweeping() {
	tick := time.NewTicker(natsSweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.stop:
			return
		case <-tick.C:
		}
		if err := n.sweepRecords(false); err != nil {
			n.o.Log.Error("stored sessions not looked through", "error", err)
		}
	}
}

// Kept is Keeper's. It tells of a device once: from then on the gateway knows better.
func (n *NATS) Kept(device string) map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := short(device)
	sessions := n.kept[key]
	delete(n.kept, key)
	return sessions
}

const (
	// natsRetained is the stream in which nats-server keeps retained messages, and the
	// headers that it gives them.
	natsRetained       = "$MQTT_rmsgs"
	natsRetainedTopic  = "Nmqtt-RTopic"
	natsRetainedSource = "Nmqtt-RSource"
	natsSize           = "Nats-Msg-Size"
	// natsFetch is how many of them are read at once.
	natsFetch = 256
)

// Retained is Keeper's. It reads the headers alone.
func (n *NATS) Retained(ctx context.Context, each func(device, topic string, octets int)) error {
	js, done, err := n.jetstream()
	if err != nil {
		return err
	}
	defer done()
	stream, err := js.Stream(ctx, natsRetained)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	left := stream.CachedInfo().State.Msgs
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return err
	}
	for left > 0 {
		batch, err := consumer.FetchNoWait(natsFetch)
		if err != nil {
			return err
		}
		got := uint64(0)
		for m := range batch.Messages() {
			got++
			h := m.Headers()
			size, _ := strconv.Atoi(h.Get(natsSize))
			if device := h.Get(natsRetainedSource); device != "" && device != platformUser {
				each(device, h.Get(natsRetainedTopic), size)
			}
		}
		if err := batch.Error(); err != nil {
			return err
		}
		if got == 0 {
			return nil
		}
		left -= min(left, got)
	}
	return ctx.Err()
}

// natsShares are the parts of the store, in percent, that the engine's streams may
// have: so that one which is full leaves the others room, and sessions what is left of
// all. Where keeps is true a full stream refuses what is new, else it drops what is oldest.
func natsShares() map[string]struct {
	percent int64
	keeps   bool
} {
	type share = struct {
		percent int64
		keeps   bool
	}
	return map[string]share{
		natsMessages: {50, false}, natsRetained: {25, true}, natsUnreleased: {10, true}, natsPubrels: {5, false},
	}
}

// boundStreams gives the streams their shares. A first client makes them.
func (n *NATS) boundStreams() error {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	if err := n.Drop(ctx, platformID()); err != nil {
		return fmt.Errorf("couldn't make the streams of the message store: %w", err)
	}
	js, done, err := n.jetstream()
	if err != nil {
		return err
	}
	defer done()
	for name, share := range natsShares() {
		stream, err := js.Stream(ctx, name)
		if err != nil {
			return fmt.Errorf("couldn't find the stream %s: %w", name, err)
		}
		c := stream.CachedInfo().Config
		c.MaxBytes = cmp.Or(n.o.MaxStore, natsMaxStore) * share.percent / 100
		if c.Discard = jetstream.DiscardOld; share.keeps {
			c.Discard = jetstream.DiscardNew
		}
		if _, err := js.UpdateStream(ctx, c); err != nil {
			return fmt.Errorf("couldn't bound the stream %s: %w", name, err)
		}
	}
	return nil
}
