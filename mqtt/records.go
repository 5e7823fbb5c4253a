package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
func (n *NATS) dropDeaf(ctx context.Context) (dropped int, err error) {
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
		if !r.deaf(exists) {
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

// sweepRecords drops deaf sessions, at the start before the first client comes.
func (n *NATS) sweepRecords() error {
	ctx, cancel := context.WithTimeout(context.Background(), natsSweepTime)
	defer cancel()
	dropped, err := n.dropDeaf(ctx)
	if err != nil {
		return fmt.Errorf("couldn't look through the stored sessions: %w", err)
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
		if err := n.sweepRecords(); err != nil {
			n.o.Log.Error("stored sessions not looked through", "error", err)
		}
	}
}
