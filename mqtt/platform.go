package mqtt

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// platformUser is the name under which the operator's own connections appear at
// the engine.
const platformUser = "platform"

func platformID() string { return platformUser + "-" + strings.ToLower(rand.Text()[:16]) }

// flagRetain is RETAIN in the fixed header of PUBLISH (MQTT 5, 3.3.1.3).
const flagRetain = 0x01

// platformMaxPacket bounds a message that the platform receives.
const platformMaxPacket = 16 << 20

// platform is a small MQTT 3.1.1 client on an engine: one connection that either
// publishes or subscribes. No message passes it by a way that devices do not use.
type platform struct {
	conn net.Conn
	in   frameReader
	now  func() time.Time
	// wraps is the engine's trait.
	wraps bool

	mu     sync.Mutex // one publish at a time
	nextID uint16
}

func newPlatform(ctx context.Context, b *Backend, now func() time.Time) (*platform, error) {
	p := &platform{conn: b.Conn, in: frameReader{src: b.Conn, max: platformMaxPacket}, now: now}
	c := connect{level: 4, cleanStart: true, clientID: b.ClientID, username: b.Username, password: b.Password}
	f, err := p.ask(ctx, c.encode(4))
	if err == nil {
		var a *connack
		if a, err = parseConnack(f, 4); err == nil && a.code != 0 {
			err = fmt.Errorf("the engine refused it with code %d", a.code)
		}
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("couldn't connect the platform to the engine: %w", err)
	}
	return p, nil
}

// ask sends a packet and reads the next one, within engineTimeout or ctx.
func (p *platform) ask(ctx context.Context, packet []byte) (frame, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.conn.SetDeadline(p.now().Add(-time.Second)) })
	defer stop()
	_ = p.conn.SetDeadline(p.now().Add(engineTimeout))
	if err := ctx.Err(); err != nil {
		return frame{}, err
	}
	if _, err := p.conn.Write(packet); err != nil {
		return frame{}, err
	}
	f, err := p.in.next()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return f, err
}

// publish hands a message to the engine at QoS 1. head is 0, or flagRetain.
func (p *platform) publish(ctx context.Context, head byte, topic string, payload []byte) error {
	if !topics.ValidName(topic) || strings.HasPrefix(topic, "$") {
		return countersign.Errorf(countersign.BadRequest, "%.80q is no topic to publish to", topic)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := wrap(nil, 0, payload); p.wraps && w != nil && len(payload) > 0 {
		payload = w
	}
	p.nextID = p.nextID%0xFFFF + 1
	body := append(appendText(nil, topic), byte(p.nextID>>8), byte(p.nextID)) //nolint:gosec // the two halves of it
	f, err := p.ask(ctx, packet(pktPublish<<4|0x02|head, append(body, payload...)))
	if err == nil && (f.kind() != pktPuback || !bytes.Equal(f.body, []byte{byte(p.nextID >> 8), byte(p.nextID)})) { //nolint:gosec // as above
		err = fmt.Errorf("packet type %d instead of PUBACK", f.kind())
	}
	if err != nil {
		return fmt.Errorf("couldn't publish to %.80q: %w", topic, err)
	}
	return nil
}

// subscribe owns p from now on.
func (p *platform) subscribe(ctx context.Context, filter string, receive func(string, []byte)) error {
	if !topics.ValidFilter(filter) || strings.HasPrefix(filter, "$") {
		p.close()
		return countersign.Errorf(countersign.BadRequest, "%.80q is no filter to subscribe to", filter)
	}
	s := subscribe{id: 1, filters: []subscription{{filter: filter, options: 1}}}
	f, err := p.ask(ctx, s.encode(pktSubscribe, 4))
	if err == nil {
		var a *suback
		if a, err = parseSuback(f, 4); err == nil && (f.kind() != pktSuback || len(a.codes) != 1 || a.codes[0] > 2) {
			err = errors.New("the engine refused it")
		}
	}
	if err != nil {
		p.close()
		return fmt.Errorf("couldn't subscribe to %.80q: %w", filter, err)
	}
	_ = p.conn.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = p.conn.Close() })
	go func() {
		defer p.close()
		defer stop()
		p.receive(receive)
	}()
	return nil
}

// receive hands out messages until the connection fails.
func (p *platform) receive(receive func(string, []byte)) {
	for {
		f, err := p.in.next()
		if err != nil || f.kind() != pktPublish {
			return
		}
		m, err := parsePublish(f, 4)
		if err != nil {
			return
		}
		if p.wraps {
			unwrap(&m)
		}
		receive(string(m.topic), bytes.Clone(m.payload))
		if m.qos > 0 { // QoS 1: that is what was asked for
			if _, err := p.conn.Write(ackPacket(pktPuback, m.id, Success)); err != nil {
				return
			}
		}
	}
}

// close leaves the engine; the session was clean.
func (p *platform) close() {
	_ = p.conn.SetWriteDeadline(p.now().Add(time.Second))
	_, _ = p.conn.Write([]byte{pktDisconnect << 4, 0})
	_ = p.conn.Close()
}
