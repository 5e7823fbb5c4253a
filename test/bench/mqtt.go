package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// connackAccepted says yes, without a session from before (MQTT 3.1.1, 3.2).
func connackAccepted() []byte { return []byte{0x20, 2, 0, 0} }

// connectPacket is a CONNECT with clean session and a keep alive of ten minutes
// (MQTT 3.1.1, 3.1). The client id is at most 100 octets.
func connectPacket(clientID string) []byte {
	p := []byte{0x10, byte(12 + len(clientID)), 0, 4, 'M', 'Q', 'T', 'T', 4, 0x02, 600 >> 8, 600 & 0xff, 0, byte(len(clientID))} //nolint:gosec // at most 112
	return append(p, clientID...)
}

// keptPacket is connectPacket for a session that is kept (MQTT 3.1.1, 3.1.2.4).
func keptPacket(clientID string) []byte {
	p := connectPacket(clientID)
	p[9] = 0
	return p
}

// subscribePacket is a SUBSCRIBE to one filter of at most 100 octets (MQTT 3.1.1, 3.8).
func subscribePacket(filter string, qos byte) []byte {
	p := append([]byte{0x82, byte(5 + len(filter)), 0, 1, 0, byte(len(filter))}, filter...) //nolint:gosec // at most 105
	return append(p, qos)
}

// subackPacket is the SUBACK that grants qos (MQTT 3.1.1, 3.9).
func subackPacket(qos byte) []byte { return []byte{0x90, 3, 0, 1, qos} }

// publishPacket is a PUBLISH (MQTT 3.1.1, 3.3). id counts with QoS 1 only.
func publishPacket(topic string, qos byte, id uint16, payload []byte) []byte {
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

// pubackPacket is a PUBACK (MQTT 3.1.1, 3.4).
func pubackPacket(id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0x40, 2}, id) }

// connect opens an MQTT session with full mutual TLS.
func (b *bench) connect(ctx context.Context, addr string, d *device) (net.Conn, error) {
	return b.dialer.open(ctx, addr, clientTLS(b.roots, &d.identity), d.id)
}

// open connects with clean session.
func (d *dialer) open(ctx context.Context, addr string, config *tls.Config, clientID string) (net.Conn, error) {
	c, err := d.dialTLS(ctx, addr, config)
	if err != nil {
		return nil, err
	}
	err = exchange(c, connectPacket(clientID), connackAccepted())
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect %s: %w", clientID, err)
	}
	return c, nil
}

// exchange sends a packet and expects one.
func exchange(c io.ReadWriter, send, want []byte) error {
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

// ping is PINGREQ and PINGRESP (MQTT 3.1.1, 3.12).
func ping(c io.ReadWriter) error { return exchange(c, []byte{0xc0, 0}, []byte{0xd0, 0}) }

// leave is DISCONNECT (MQTT 3.1.1, 3.14).
func leave(c net.Conn) {
	_, _ = c.Write([]byte{0xe0, 0}) // the server may be gone
	_ = c.Close()
}

// connects measures new MQTT connections of devices, each until its CONNACK.
func (b *bench) connects(ctx context.Context, p *process, name, addr string, devices []*device) (sample, error) {
	return p.load(ctx, name, connectWorkers, len(devices), func(ctx context.Context, _, i int) error {
		c, err := b.connect(ctx, addr, devices[i])
		if err == nil {
			leave(c)
		}
		return err
	})
}
