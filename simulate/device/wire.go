package device

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// wireBuffer is read at once: a few dozen messages.
	wireBuffer = 4 << 10
	// maxReceived bounds a packet: nothing as large is sent to these devices.
	maxReceived = 64 << 10
)

// Wire is an MQTT 3.1.1 session without goroutines of its own, for measurements: many of
// them cost the machine little. Once Receive runs, other goroutines may write to it and
// only Receive reads.
type Wire struct {
	net.Conn
	in *bufio.Reader
}

// Join opens a session on a connection: one with clean session, or the kept one of the
// client.
func Join(conn net.Conn, clientID string, kept bool) (*Wire, error) {
	w := &Wire{conn, bufio.NewReaderSize(conn, wireBuffer)}
	hello := ConnectPacket(clientID)
	if kept {
		hello = KeptPacket(clientID)
	}
	_, err := w.Write(hello)
	if err == nil {
		err = w.greeted()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect %s: %w", clientID, err), conn.Close())
	}
	return w, nil
}

// greeted reads CONNACK, whether there is a session from before or not.
func (c *Wire) greeted() error {
	first, body, err := c.packet(nil)
	if err == nil && (first != 0x20 || len(body) != 2 || body[1] != 0) {
		err = fmt.Errorf("the server answered %x %x, not CONNACK", first, body)
	}
	return errors.Join(err, c.SetDeadline(time.Time{}))
}

// Subscribe asks for one filter. Nothing may be on its way to the client.
func (c *Wire) Subscribe(filter string, qos byte) error {
	if err := c.SetDeadline(time.Now().Add(stepTime)); err != nil { //nolint:forbidigo // a deadline of the kernel's clock
		return err
	}
	return errors.Join(Exchange(c, SubscribePacket(filter, qos), SubackPacket(qos)), c.SetDeadline(time.Time{}))
}

// Read reads what the server sent after the packets that were read already.
func (c *Wire) Read(p []byte) (int, error) { return c.in.Read(p) }

// packet reads one packet into buf, which grows.
func (c *Wire) packet(buf []byte) (first byte, body []byte, err error) {
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

// Receive reads until the connection ends. A message of QoS 1 is acknowledged by itself,
// as clients do, after got was called; acked is called for each PUBACK. Both may be nil.
func (c *Wire) Receive(got func(payload []byte), acked func()) error {
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
				if _, err := c.Write(PubackPacket(binary.BigEndian.Uint16(id))); err != nil {
					return err
				}
			}
		}
	}
}

// Accepted says yes, without a session from before (MQTT 3.1.1, 3.2).
func Accepted() []byte { return []byte{0x20, 2, 0, 0} }

// ConnectPacket is a CONNECT with clean session and a keep alive of ten minutes
// (MQTT 3.1.1, 3.1). The client id is at most 100 octets.
func ConnectPacket(clientID string) []byte {
	p := []byte{0x10, byte(12 + len(clientID)), 0, 4, 'M', 'Q', 'T', 'T', 4, 0x02, 600 >> 8, 600 & 0xff, 0, byte(len(clientID))} //nolint:gosec // at most 112
	return append(p, clientID...)
}

// KeptPacket is connectPacket for a session that is kept (MQTT 3.1.1, 3.1.2.4).
func KeptPacket(clientID string) []byte {
	p := ConnectPacket(clientID)
	p[9] = 0
	return p
}

// SubscribePacket is a SUBSCRIBE to one filter of at most 100 octets (MQTT 3.1.1, 3.8).
func SubscribePacket(filter string, qos byte) []byte {
	p := append([]byte{0x82, byte(5 + len(filter)), 0, 1, 0, byte(len(filter))}, filter...) //nolint:gosec // at most 105
	return append(p, qos)
}

// SubackPacket is the SUBACK that grants qos (MQTT 3.1.1, 3.9).
func SubackPacket(qos byte) []byte { return []byte{0x90, 3, 0, 1, qos} }

// PublishPacket is a PUBLISH (MQTT 3.1.1, 3.3). id counts with QoS 1 only.
func PublishPacket(topic string, qos byte, id uint16, payload []byte) []byte {
	n := 2 + len(topic) + len(payload)
	if qos > 0 {
		n += 2
	}
	p := binary.AppendUvarint([]byte{0x30 | qos<<1}, uint64(n))                // MQTT has the same form
	p = append(binary.BigEndian.AppendUint16(p, uint16(len(topic))), topic...) //nolint:gosec // at most 100
	if qos > 0 {
		p = binary.BigEndian.AppendUint16(p, id)
	}
	return append(p, payload...)
}

// PubackPacket is a PUBACK (MQTT 3.1.1, 3.4).
func PubackPacket(id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0x40, 2}, id) }

// Exchange sends a packet and expects one.
func Exchange(c io.ReadWriter, send, want []byte) error {
	if _, err := c.Write(send); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the server answered %x, not %x", got, want)
	}
	return nil
}

// Ping is PINGREQ and PINGRESP (MQTT 3.1.1, 3.12).
func Ping(c io.ReadWriter) error { return Exchange(c, []byte{0xc0, 0}, []byte{0xd0, 0}) }

// Disconnect is DISCONNECT (MQTT 3.1.1, 3.14).
func Disconnect(c net.Conn) {
	_, _ = c.Write([]byte{0xe0, 0}) // the server may be gone
	_ = c.Close()
}
