package interop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// subscriber receives with a kept session and acknowledges in order.
type subscriber struct {
	k       *talk
	h       *history
	device  string
	client  string
	filters []packets.SubOptions
	most    uint16        // Receive Maximum; 0: none
	late    time.Duration // how long it acknowledges late, at most
	flap    time.Duration // how long a connection lasts at most; 0: until it is lost
	fresh   int           // after how many connections it starts clean; 0: never
	settled func() bool   // the storm is over: stay connected

	now     *life
	joined  bool                 // the session of now was acknowledged
	inbound map[uint16]*received // messages of QoS 2 that wait for PUBREL
	seen    map[delivery]bool    // in this life
}

// delivery is one message under one packet identifier.
type delivery struct {
	received
	id uint16
}

// run receives until ctx ends. The error says which promise on sessions was broken.
func (s *subscriber) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if s.now == nil || s.fresh > 0 && s.now.conns >= s.fresh && !s.settled() {
			s.begin()
		}
		hello := kept(s.client, !s.joined)
		if s.most > 0 {
			hello.Properties.ReceiveMaximum = new(s.most)
		}
		c, err := s.k.dial(s.device, hello)
		if err != nil {
			time.Sleep(retryAfter)
			continue
		}
		if c.connack.SessionPresent != s.joined {
			_ = c.Close()
			return fmt.Errorf("%s: got Session Present %v, want %v", s.now.name, c.connack.SessionPresent, s.joined)
		}
		s.joined = true
		s.h.mu.Lock()
		s.now.conns++
		s.h.mu.Unlock()
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		err = s.session(c)
		stop()
		_ = c.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// begin begins a new life: the next CONNECT starts clean.
func (s *subscriber) begin() {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.now != nil {
		s.now.over = true
	}
	s.now = &life{name: fmt.Sprintf("%s, life %d", s.client, len(s.h.lives)), filters: s.filters}
	s.h.lives = append(s.h.lives, s.now)
	s.joined, s.inbound, s.seen = false, map[uint16]*received{}, map[delivery]bool{}
}

// session receives over one connection. What ends it is no fault.
func (s *subscriber) session(c *wire) error {
	acks := make(chan packets.Packet, 65536)
	done := make(chan struct{})
	go s.acknowledge(c, acks, done)
	defer func() { close(acks); <-done }()
	if s.flap > 0 && !s.settled() {
		t := time.AfterFunc(s.flap/4+rand.N(s.flap), func() {
			if rand.N(2) == 0 {
				_ = c.send(&packets.Disconnect{Properties: &packets.Properties{}}) // else as a broken line
			}
			_ = c.Close()
		})
		defer t.Stop()
	}
	if s.now.since.IsZero() {
		if err := c.send(&packets.Subscribe{PacketID: 1, Subscriptions: s.filters, Properties: &packets.Properties{}}); err != nil {
			return nil
		}
	}
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return nil
		}
		switch m := p.Content.(type) {
		case *packets.Suback:
			if err := s.subscribed(m); err != nil {
				return err
			}
		case *packets.Publish:
			if err := s.receive(m, acks); err != nil {
				return err
			}
		case *packets.Pubrel:
			delete(s.inbound, m.PacketID)
			acks <- &packets.Pubcomp{PacketID: m.PacketID, Properties: &packets.Properties{}}
		}
	}
}

// subscribed notes a SUBACK. What the record did not take, because the database was away,
// is asked for again with the next connection.
func (s *subscriber) subscribed(m *packets.Suback) error {
	for i, code := range m.Reasons {
		if code == 0x80 {
			return nil
		}
		if code != s.filters[i].QoS {
			return fmt.Errorf("%s: SUBACK for %s: got %#x, want %d", s.now.name, s.filters[i].Topic, code, s.filters[i].QoS)
		}
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.now.since = time.Now()
	return nil
}

// receive notes a message and has it acknowledged.
func (s *subscriber) receive(m *packets.Publish, acks chan<- packets.Packet) error {
	text, _, _ := strings.Cut(string(m.Payload), " ")
	n, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("%s: got payload %.80q on %s", s.now.name, m.Payload, m.Topic)
	}
	r := &received{topic: m.Topic, n: n, qos: m.QoS}
	if d := (delivery{*r, m.PacketID}); s.seen[d] && !m.Duplicate {
		return fmt.Errorf("%s: identifier %d has %v again without DUP", s.now.name, m.PacketID, *r)
	}
	s.seen[delivery{*r, m.PacketID}] = true
	switch m.QoS {
	case 1:
		acks <- &packets.Puback{PacketID: m.PacketID, Properties: &packets.Properties{}}
	case 2:
		acks <- &packets.Pubrec{PacketID: m.PacketID, Properties: &packets.Properties{}}
		if before := s.inbound[m.PacketID]; before != nil {
			if *before != *r {
				return fmt.Errorf("%s: identifier %d has %v while %v waits for PUBREL", s.now.name, m.PacketID, *r, *before)
			}
			return nil
		}
		s.inbound[m.PacketID] = r
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.now.got = append(s.now.got, *r)
	return nil
}

// acknowledge sends acknowledgments in their order, late if the subscriber is.
func (s *subscriber) acknowledge(c *wire, acks <-chan packets.Packet, done chan<- struct{}) {
	defer close(done)
	broken := false
	for p := range acks {
		if broken {
			continue
		}
		if s.late > 0 && len(acks) == 0 && !s.settled() {
			time.Sleep(rand.N(s.late))
		}
		broken = c.send(p) != nil
	}
}
