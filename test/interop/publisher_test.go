package interop

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// fate is what a publisher knows of a message.
type fate byte

const (
	unknown      fate = iota // sent, perhaps
	acknowledged             // PUBACK, or PUBREC, with success
	refused                  // a reason code that is no success: it may have been delivered to some
)

// act is one message in the history: a number in its topic, and what became of it.
type act struct {
	topic   string
	n       int
	qos     byte
	retain  bool
	payload string // empty: it removes the retained message

	// Guarded by the history's lock.
	began, ended time.Time // of the first PUBLISH and of the acknowledgment
	fate         fate
	sends        int // PUBLISH packets
	id           uint16
	released     bool // PUBREC came: PUBREL is due
}

// publisher publishes acts in their order, up to window at once, and resends after each
// lost connection what was not acknowledged.
type publisher struct {
	k      *talk
	h      *history
	device string
	window int
	next   func(n int) *act // the nth; nil: there are no more
	pace   time.Duration

	mu     sync.Mutex
	flight []*act // in the order of their first PUBLISH
	count  int
	used   map[uint16]bool
	lastID uint16
	joined bool // it has had a session
}

// retryAfter is how long a client waits before it connects again: short, so that many
// moments of a start are met.
const retryAfter = 30 * time.Millisecond

// run publishes until there are no more acts and all were answered, or ctx ends.
func (p *publisher) run(ctx context.Context) error {
	p.used = map[uint16]bool{}
	for ctx.Err() == nil {
		c, err := p.k.dial(p.device, kept(p.device, false))
		if err != nil {
			time.Sleep(retryAfter)
			continue
		}
		if p.joined && !c.connack.SessionPresent {
			_ = c.Close()
			return fmt.Errorf("%s: Session Present 0, want the session that was acknowledged", p.device)
		}
		p.joined = true
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		done, err := p.session(c)
		stop()
		_ = c.Close()
		if done || err != nil {
			return err
		}
	}
	return ctx.Err()
}

// session publishes over one connection until it is lost or all is done.
func (p *publisher) session(c *wire) (done bool, err error) {
	room := make(chan struct{}, 1)
	read := make(chan error, 1)
	lost := make(chan struct{})
	for _, a := range slices.Clone(p.flight) {
		if p.resend(c, a) != nil {
			return false, nil
		}
	}
	go func() {
		defer close(lost)
		for {
			packet, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			if err := p.answered(c, packet); err != nil {
				read <- err
				return
			}
			select {
			case room <- struct{}{}:
			default:
			}
		}
	}()
	for {
		a, all := p.take()
		switch {
		case all:
			return true, nil
		case a == nil:
			select {
			case <-room:
			case <-lost:
				select {
				case err := <-read:
					return false, err
				default:
					return false, nil
				}
			}
		default:
			if p.resend(c, a) != nil {
				_ = c.Close()
				<-lost
				return false, nil
			}
			time.Sleep(p.pace)
		}
	}
}

// take puts the next act in flight; nil where the window is full.
func (p *publisher) take() (a *act, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.flight) >= p.window {
		return nil, false
	}
	if a = p.next(p.count); a == nil {
		return nil, len(p.flight) == 0
	}
	p.count++
	for p.lastID++; p.lastID == 0 || p.used[p.lastID]; p.lastID++ {
	}
	a.id = p.lastID
	p.used[a.id] = true
	p.flight = append(p.flight, a)
	p.h.begin(a)
	return a, false
}

// resend sends the packet that is due for an act.
func (p *publisher) resend(c *wire, a *act) error {
	p.h.mu.Lock()
	released, again := a.released, a.sends > 0
	if !released {
		a.sends++
	}
	p.h.mu.Unlock()
	if released {
		return c.send(&packets.Pubrel{PacketID: a.id, Properties: &packets.Properties{}})
	}
	return c.send(&packets.Publish{
		Topic: a.topic, Payload: []byte(a.payload), QoS: a.qos, PacketID: a.id, Retain: a.retain, Duplicate: again, Properties: &packets.Properties{},
	})
}

// answered notes an acknowledgment.
func (p *publisher) answered(c *wire, packet *packets.ControlPacket) error {
	switch ack := packet.Content.(type) {
	case *packets.Puback:
		return p.settle(ack.PacketID, ack.ReasonCode)
	case *packets.Pubrec:
		a := p.find(ack.PacketID)
		if a == nil {
			return fmt.Errorf("%s: PUBREC for %d, which is not in flight", p.device, ack.PacketID)
		}
		if ack.ReasonCode >= 0x80 {
			return p.settle(ack.PacketID, ack.ReasonCode)
		}
		p.h.acknowledge(a, true)
		_ = c.send(&packets.Pubrel{PacketID: a.id, Properties: &packets.Properties{}}) // sent again after the connection's end
	case *packets.Pubcomp:
		return p.settle(ack.PacketID, 0)
	}
	return nil
}

func (p *publisher) find(id uint16) *act {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.IndexFunc(p.flight, func(a *act) bool { return a.id == id }); i >= 0 {
		return p.flight[i]
	}
	return nil
}

// settle ends an act.
func (p *publisher) settle(id uint16, code byte) error {
	a := p.find(id)
	if a == nil {
		return fmt.Errorf("%s: an acknowledgment for %d, which is not in flight", p.device, id)
	}
	if code >= 0x80 {
		p.h.refuse(a)
	} else {
		p.h.acknowledge(a, false)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flight = slices.DeleteFunc(p.flight, func(o *act) bool { return o == a })
	delete(p.used, id)
	return nil
}
