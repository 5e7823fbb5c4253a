package baddevice

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// many is how many sessions it uses where it misbehaves in each: as many as a
	// device may have.
	many = 16
	// lastAnswers is how long it listens after it has stopped.
	lastAnswers = 2 * time.Second
)

// Behaviors are all ways to misbehave.
func Behaviors() []Behavior {
	return []Behavior{
		{Name: "does not read", Takes: 21 * time.Second, Answers: []string{"closed"}, Budget: "unread", run: leaveUnread},
		{Name: "floods retained messages", Takes: 4 * time.Second, Answers: []string{"PUBACK 0x00", "PUBACK 0x97"}, Budget: "retained", run: retain},
		{Name: "renews in a loop", Takes: 4 * time.Second, Answers: []string{"HTTP 200", "HTTP 429, Retry-After"}, Budget: "renewals", run: renew},
		{Name: "opens every session", Takes: 4 * time.Second, Answers: []string{"CONNACK 0x97", "CONNACK 0x03"}, Budget: "sessions", run: openSessions},
		{Name: "subscribes to everything", Takes: 4 * time.Second, Answers: []string{"SUBACK 0x97"}, Budget: "subscriptions", run: subscribeAll},
		{Name: "publishes at full speed", Takes: 14 * time.Second, Budget: "publishes", run: flood},
		{Name: "publishes what is refused", Takes: 6 * time.Second, Answers: []string{"PUBACK 0x87", "DISCONNECT 0x94"}, Budget: "events", run: publishRefused},
		{Name: "opens half of connections", Takes: 7 * time.Second, Answers: []string{"reset", "closed late"}, run: openHalf},
	}
}

// sessions opens n sessions.
func (d *Device) sessions(ctx context.Context, n int) (list []*client, err error) {
	for i := range n {
		c, err := d.connect(ctx, fmt.Sprintf("%s/%d", d.Name, i), 5)
		if err == nil && c == nil {
			err = errors.New("the session was refused")
		}
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// each runs f for all of the clients at once.
func each(list []*client, f func(*client)) {
	var wg sync.WaitGroup
	for _, c := range list {
		wg.Go(func() { f(c) })
	}
	wg.Wait()
}

// leaveUnread subscribes in all its sessions, and reads nothing of what comes.
func leaveUnread(ctx context.Context, d *Device) error {
	list, err := d.sessions(ctx, many)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := c.ask(subscribe(0, "devices/"+d.Name+"/down/#"), pktSuback); err != nil {
			return err
		}
	}
	payload := make([]byte, 48<<10)
	for ctx.Err() == nil {
		if err := d.Send(ctx, "devices/"+d.Name+"/down/x", payload); err != nil && ctx.Err() == nil {
			return err
		}
	}
	each(list, func(c *client) { c.drain(ctx, lastAnswers) })
	return nil
}

// retain publishes retained messages, each to a topic of its own.
func retain(ctx context.Context, d *Device) error {
	list, err := d.sessions(ctx, 2)
	if err != nil {
		return err
	}
	payload := make([]byte, 8<<10)
	each(list, func(c *client) {
		for i := 0; ctx.Err() == nil; i++ {
			topic := fmt.Sprintf("devices/%s/up/%p/%d", d.Name, c, i)
			if c.ask(publish(1, true, topic, 0, payload), pktPuback) != nil {
				return
			}
		}
	})
	return nil
}

// renew asks for one certificate after another, each for a new key.
func renew(ctx context.Context, d *Device) error {
	h := d.http()
	defer h.CloseIdleConnections()
	for ctx.Err() == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.Name}}, key)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.Renew, bytes.NewReader(csr))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/pkcs10")
		res, err := h.Do(req)
		if err != nil {
			if ctx.Err() == nil {
				return err
			}
			return nil
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		answer := fmt.Sprintf("HTTP %d", res.StatusCode)
		if res.Header.Get("Retry-After") != "" {
			answer += ", Retry-After"
		}
		d.note(answer)
	}
	return nil
}

// openSessions opens sessions with ever new client identifiers, of both versions.
func openSessions(ctx context.Context, d *Device) error {
	for i := 0; ctx.Err() == nil; i++ {
		_, err := d.connect(ctx, fmt.Sprintf("%s/%d", d.Name, i), byte(4+i%2))
		if err != nil && i < 2 {
			return err
		}
	}
	return nil
}

// subscribeAll subscribes to ever new filters.
func subscribeAll(ctx context.Context, d *Device) error {
	list, err := d.sessions(ctx, 4)
	if err != nil {
		return err
	}
	each(list, func(c *client) {
		for n := 0; ctx.Err() == nil; {
			var filters []string
			for range 50 {
				n++
				filters = append(filters, fmt.Sprintf("devices/%s/down/%p/%d/#", d.Name, c, n))
			}
			if c.ask(subscribe(1, filters...), pktSuback) != nil {
				return
			}
		}
	})
	return nil
}

// flood publishes as fast as the server reads.
func flood(ctx context.Context, d *Device) error {
	list, err := d.sessions(ctx, 4)
	if err != nil {
		return err
	}
	message := publish(0, false, "devices/"+d.Name+"/up/flood", 0, make([]byte, 512))
	each(list, func(c *client) {
		for ctx.Err() == nil {
			if _, err := c.Write(message); err != nil {
				return
			}
		}
	})
	return nil
}

// publishRefused publishes to topics of others, with a topic alias for each that is as
// long as topics may be, and then with one alias more than there are.
func publishRefused(ctx context.Context, d *Device) error {
	const aliases = 16 // of the server's CONNACK
	one := func(ctx context.Context, n int) error {
		for ctx.Err() == nil {
			c, err := d.connect(ctx, fmt.Sprintf("%s/%d", d.Name, n), 5)
			if err != nil || c == nil {
				return err
			}
			for i := range 4 * aliases {
				topic := fmt.Sprintf("devices/other/up/%0900d", i)
				if err := c.ask(publish(1, false, topic, uint16(i%aliases+1), nil), pktPuback); err != nil {
					return err
				}
			}
			_, _ = c.Write(publish(0, false, "devices/"+d.Name+"/up/x", aliases+1, nil))
			_ = c.await(0) // until it is closed
		}
		return nil
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() { _ = one(ctx, n) }) // what it was answered is noted
	}
	wg.Wait()
	return nil
}

// openHalf opens connections that come to nothing: some say nothing, some send one
// octet a second of a ClientHello, some of a CONNECT. It stops when the server resets
// them, and looks whether the first ones are closed in the end.
func openHalf(ctx context.Context, d *Device) error {
	hello := []byte{22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3}
	var wg sync.WaitGroup
	for i := 0; ctx.Err() == nil && i < 700; i++ {
		raw, err := d.dial(ctx)
		if err != nil {
			d.note("reset")
			continue
		}
		wg.Go(func() { // until the server ends it
			if _, err := io.Copy(io.Discard, raw); ctx.Err() == nil {
				d.note(map[bool]string{true: "closed late", false: "reset"}[err == nil])
			}
		})
		if i%3 == 0 {
			wg.Go(func() { drip(ctx, raw, hello) })
		}
	}
	for range 8 {
		raw, err := d.dial(ctx)
		if err != nil {
			continue
		}
		t, err := d.secure(ctx, raw)
		if err != nil {
			continue
		}
		wg.Go(func() { drip(ctx, t, connectPacket(d.Name, 5)) })
	}
	wg.Wait()
	return nil
}

// drip writes one octet a second.
func drip(ctx context.Context, w io.Writer, octets []byte) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range octets {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := w.Write(octets[i : i+1]); err != nil {
			return
		}
	}
}
