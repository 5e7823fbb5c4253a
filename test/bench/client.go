package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// clientBuffer is read at once: a few dozen messages.
	clientBuffer = 4 << 10
	// maxReceived bounds a packet: the bench sends nothing as large.
	maxReceived = 64 << 10
	// payloadSize is that of a small report.
	payloadSize = 100
)

// client is a session that receives. Once receive runs, other goroutines may write to it
// and only receive reads.
type client struct {
	net.Conn
	in *bufio.Reader
}

// join opens a session: one with clean session, or the kept one of the device.
func (b *bench) join(ctx context.Context, addr string, d *device, kept bool) (*client, error) {
	c, err := b.dialer.dialTLS(ctx, addr, clientTLS(b.roots, &d.identity))
	if err != nil {
		return nil, err
	}
	l := &client{c, bufio.NewReaderSize(c, clientBuffer)}
	hello := connectPacket(d.id)
	if kept {
		hello = keptPacket(d.id)
	}
	if _, err = c.Write(hello); err == nil {
		err = l.greeted()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect %s: %w", d.id, err), c.Close())
	}
	return l, nil
}

// greeted reads CONNACK, whether there is a session from before or not.
func (c *client) greeted() error {
	first, body, err := c.packet(nil)
	if err == nil && (first != 0x20 || len(body) != 2 || body[1] != 0) {
		err = fmt.Errorf("the server answered %x %x, not CONNACK", first, body)
	}
	return errors.Join(err, c.SetDeadline(time.Time{}))
}

// subscribe asks for one filter. Nothing may be on its way to the client.
func (c *client) subscribe(filter string, qos byte) error {
	if err := c.SetDeadline(now().Add(opTimeout)); err != nil {
		return err
	}
	return errors.Join(exchange(struct {
		io.Reader
		io.Writer
	}{c.in, c.Conn}, subscribePacket(filter, qos), subackPacket(qos)), c.SetDeadline(time.Time{}))
}

// packet reads one packet into buf, which grows.
func (c *client) packet(buf []byte) (first byte, body []byte, err error) {
	if first, err = c.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(c.in)
	if err != nil {
		return 0, nil, err
	}
	if n > maxReceived {
		return 0, nil, fmt.Errorf("the server sent a packet of %d octets", n)
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	_, err = io.ReadFull(c.in, buf[:n])
	return first, buf[:n], err
}

// receive reads until the connection ends. A message of QoS 1 is acknowledged by itself,
// as clients do, after got was called; acked is called for each PUBACK. Both may be nil.
func (c *client) receive(got func(payload []byte), acked func()) error {
	var buf []byte
	for {
		first, body, err := c.packet(buf)
		if err != nil {
			return err
		}
		buf = body
		switch {
		case first>>4 == 4 && acked != nil:
			acked()
		case first>>4 == 3:
			at := 2 + int(binary.BigEndian.Uint16(body))
			var id []byte
			if first&0x06 != 0 {
				id = body[at : at+2]
				at += 2
			}
			if got != nil {
				got(body[at:])
			}
			if id != nil {
				if _, err := c.Write(pubackPacket(binary.BigEndian.Uint16(id))); err != nil {
					return err
				}
			}
		}
	}
}

// leaveAll ends sessions; those that receive end too.
func leaveAll(clients []*client) {
	for _, c := range clients {
		if c != nil {
			leave(c)
		}
	}
}
