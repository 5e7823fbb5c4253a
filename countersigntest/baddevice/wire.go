package baddevice

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Types of packets (MQTT 5, 2.1.2).
const (
	pktConnack    = 2
	pktPublish    = 3
	pktPuback     = 4
	pktSuback     = 9
	pktDisconnect = 14
)

// maxPacket bounds what it reads at once; a server sends less than it takes.
const maxPacket = 1 << 20

// client is one connection of the device that speaks MQTT.
type client struct {
	*tls.Conn
	device *Device
	in     *bufio.Reader
	level  byte
}

// connect opens a session and reads CONNACK. The error is that there was none; a
// refusal is noted and has a nil client.
func (d *Device) connect(ctx context.Context, id string, level byte) (*client, error) {
	raw, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	t, err := d.secure(ctx, raw)
	if err != nil {
		return nil, err
	}
	c := &client{Conn: t, device: d, in: bufio.NewReaderSize(t, 512), level: level}
	if _, err := c.Write(connectPacket(id, level)); err != nil {
		return nil, err
	}
	kind, body, err := c.next()
	if err != nil {
		return nil, err
	}
	if kind != pktConnack || len(body) < 2 {
		return nil, fmt.Errorf("packet %d instead of CONNACK", kind)
	}
	if body[1] != 0 {
		return nil, raw.Close()
	}
	return c, nil
}

// next reads a packet and notes the answer in it, or the end of the connection.
func (c *client) next() (kind byte, body []byte, err error) {
	head, err := c.in.ReadByte()
	size := uint64(0)
	if err == nil {
		size, err = binary.ReadUvarint(c.in) // MQTT's variable byte integers are of that form
	}
	if err == nil && size > maxPacket {
		err = fmt.Errorf("a packet of %d octets", size)
	}
	if err == nil {
		body = make([]byte, size)
		_, err = io.ReadFull(c.in, body)
	}
	if err != nil {
		var late net.Error
		if !errors.As(err, &late) || !late.Timeout() {
			c.device.note("closed")
		}
		return 0, nil, err
	}
	c.noteAnswer(head>>4, body)
	return head >> 4, body, nil
}

func (c *client) noteAnswer(kind byte, body []byte) {
	note := func(name string, at int) { // 0 where the code is left out
		code := byte(0)
		if len(body) > at {
			code = body[at]
		}
		c.device.note(fmt.Sprintf("%s 0x%02x", name, code))
	}
	switch kind {
	case pktConnack:
		note("CONNACK", 1)
	case pktPuback:
		note("PUBACK", 2)
	case pktDisconnect:
		note("DISCONNECT", 0)
	case pktSuback: // MQTT 5: packet identifier, properties, codes
		at := 2
		if c.level == 5 && len(body) > 2 {
			at += 1 + int(body[2]) // the reason string is short
		}
		for ; at < len(body); at++ {
			note("SUBACK", at)
		}
	}
}

// ask sends a packet and awaits one of a kind.
func (c *client) ask(packet []byte, kind byte) error {
	if _, err := c.Write(packet); err != nil {
		return err
	}
	return c.await(kind)
}

// await reads until a packet of one kind came.
func (c *client) await(kind byte) error {
	for {
		got, _, err := c.next()
		if err != nil || got == kind {
			return err
		}
	}
}

// drain reads what the server has sent meanwhile, for as long as grace after the end
// of ctx.
func (c *client) drain(ctx context.Context, grace time.Duration) {
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetReadDeadline(end.Add(grace))
	}
	for {
		if _, _, err := c.next(); err != nil {
			return
		}
	}
}

func text(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) //nolint:gosec // short
}

func packet(head byte, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	return append(binary.AppendUvarint([]byte{head}, uint64(len(body))), body...)
}

// connectPacket asks for a session of which nothing is kept.
func connectPacket(id string, level byte) []byte {
	var properties []byte
	if level == 5 {
		properties = []byte{0}
	}
	return packet(0x10, text("MQTT"), []byte{level, 2, 0, 60}, properties, text(id))
}

// publish is a PUBLISH of MQTT 5; alias 0 is none.
func publish(qos byte, retain bool, topic string, alias uint16, payload []byte) []byte {
	head := byte(pktPublish<<4) | qos<<1
	if retain {
		head |= 1
	}
	var id []byte
	if qos > 0 {
		id = []byte{0, 1}
	}
	properties := []byte{0}
	if alias > 0 {
		properties = binary.BigEndian.AppendUint16([]byte{3, 0x23}, alias)
	}
	return packet(head, text(topic), id, properties, payload)
}

// subscribe is a SUBSCRIBE of MQTT 5.
func subscribe(qos byte, filters ...string) []byte {
	parts := [][]byte{{0, 1, 0}}
	for _, f := range filters {
		parts = append(parts, text(f), []byte{qos})
	}
	return packet(0x82, parts...)
}
