package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	countersign "github.com/countersign-iot/countersign"
)

const (
	// resumeWait is for how long a message must be unacknowledged to be sent again
	// when its client comes back, while that is being arranged for.
	resumeWait = 200 * time.Millisecond
	// resumeTime is how long that lasts: nats-server looks after a tenth of a second,
	// and again after resumeWait.
	resumeTime = 700 * time.Millisecond
	// maxResumes bounds those under way. For the others nats-server sends again
	// after its own 30 seconds.
	maxResumes = 64

	natsMessages = "$MQTT_msgs" // the stream of messages of QoS 1 and 2
	natsPubrels  = "$MQTT_out"  // the stream of PUBREL packets

	// natsInbox begins the subjects on which the engine answers the gateway: no filter
	// with a wildcard matches what begins with a dollar sign, [MQTT-4.7.2-1].
	natsInbox = "$countersign"

	natsUnreleased = "$MQTT_qos2in" // the stream of QoS 2 messages that wait for PUBREL
)

// Resume makes nats-server send again at once what a session's client has not
// acknowledged. By itself it does so 30 seconds after it last did, whoever is
// connected; MQTT wants it on reconnect ([MQTT-4.4.0-1]).
func (n *NATS) Resume(s countersign.Session) {
	select {
	case n.resumes <- struct{}{}:
	default:
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.ill {
		<-n.resumes
		return
	}
	n.reviver.Go(func() {
		defer func() { <-n.resumes }()
		ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
		defer cancel()
		if err := n.resume(ctx, natsID(s.Device, s.ClientID)); err != nil {
			n.o.Log.DebugContext(ctx, "messages not sent again at once", "session", s.ID, "error", err)
		}
	})
}

func (n *NATS) resume(ctx context.Context, id string) error {
	js, done, err := n.jetstream()
	if err != nil {
		return err
	}
	defer done()
	consumers, err := natsConsumers(ctx, js, id)
	if err != nil {
		return err
	}
	var changed []natsConsumer
	for _, c := range consumers {
		one, err := js.PushConsumer(ctx, c.stream, c.name)
		if err != nil {
			return fmt.Errorf("couldn't find consumer %s: %w", c.name, err)
		}
		if info := one.CachedInfo(); info.NumAckPending > 0 {
			c.config = info.Config
			faster := c.config
			faster.AckWait = resumeWait
			if _, err := js.UpdatePushConsumer(ctx, c.stream, faster); err != nil {
				return fmt.Errorf("couldn't hurry consumer %s: %w", c.name, err)
			}
			changed = append(changed, c)
		}
	}
	if changed == nil {
		return nil
	}
	t := time.NewTimer(resumeTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-n.stop:
	}
	for _, c := range changed {
		_, e := js.UpdatePushConsumer(ctx, c.stream, c.config)
		err = errors.Join(err, e)
	}
	return err
}

// Forget drops what waits for a PUBREL of a session's client. nats-server keeps it
// when a clean session ends, by packet identifier: the next message with the same
// one would be taken for its repetition, and the old one delivered in its place.
func (n *NATS) Forget(ctx context.Context, s countersign.Session) error {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	js, done, err := n.jetstream()
	if err != nil {
		return err
	}
	defer done()
	stream, err := js.Stream(ctx, natsUnreleased)
	if err != nil {
		return err
	}
	return stream.Purge(ctx, jetstream.WithPurgeSubject("$MQTT.qos2.in."+natsID(s.Device, s.ClientID)+".>"))
}

type natsConsumer struct {
	stream, name string
	config       jetstream.ConsumerConfig
}

// natsConsumers are the consumers that nats-server keeps for an MQTT session.
func natsConsumers(ctx context.Context, js jetstream.JetStream, id string) ([]natsConsumer, error) {
	stream, err := js.Stream(ctx, natsSessions)
	if err != nil {
		return nil, err
	}
	m, err := stream.GetLastMsgForSubject(ctx, "$MQTT.sess."+natsHash(id))
	if err != nil {
		return nil, err
	}
	var record natsRecord
	if err := json.Unmarshal(m.Data, &record); err != nil {
		return nil, err
	}
	if record.ID != id {
		return nil, fmt.Errorf("the record is that of %s", record.ID)
	}
	var list []natsConsumer
	for stream, all := range record.consumers() {
		for _, c := range all {
			list = append(list, natsConsumer{stream: stream, name: c.Durable})
		}
	}
	return list, nil
}

// natsHash is nats-server's name of a session's record: eight digits to base 62.
func natsHash(id string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	h := sha256.Sum256([]byte(id))
	b := h[:8]
	for i := range b {
		b[i] = digits[int(b[i])%len(digits)]
	}
	return string(b)
}

// jetstream opens a connection to the message store itself.
func (n *NATS) jetstream() (js jetstream.JetStream, done func(), err error) {
	token := rand.Text()
	n.mu.Lock()
	n.grants[token] = grant{&server.User{Username: platformUser}, n.o.Now().Add(natsTokenLife)}
	srv := n.srv
	n.mu.Unlock()
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.UserInfo(platformUser, token), nats.NoReconnect(),
		nats.CustomInboxPrefix(natsInbox))
	if err != nil {
		return nil, nil, err
	}
	if js, err = jetstream.New(nc); err != nil {
		nc.Close()
		return nil, nil, err
	}
	return js, nc.Close, nil
}
