package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign/simulate/device"
)

// hostileCommand makes this program the attacker, so that what it costs is not
// taken for the cost of the honest.
const hostileCommand = "be-hostile"

const (
	// maxHostile bounds the connections that the attacker has open at once; attempts
	// beyond it are dropped and counted as such.
	maxHostile = 4000
	// hostileTime is how long it waits for each step of one.
	hostileTime = 3 * time.Second
	// hostileAddresses is the many that it comes from.
	hostileAddresses = 200
)

// attack is the task of the attacker.
type attack struct {
	Addr      string `json:"addr"`
	Rate      int    `json:"rate"`      // connections a second
	Addresses int    `json:"addresses"` // it comes from
	Net       byte   `json:"net"`       // third octet of them
	Target    string `json:"target"`    // device whose secret it guesses
	Chain     []byte `json:"chain"`     // PEM of a revoked device
	Key       []byte `json:"key"`
}

// damage is what the attacker reports in the end.
type damage struct {
	Attempts   int64 `json:"attempts"`
	Dropped    int64 `json:"dropped"`    // not attempted, for want of room here
	Refused    int64 `json:"refused"`    // ended before the handshake was over
	Handshakes int64 `json:"handshakes"` // that the server went through with
	Admitted   int64 `json:"admitted"`
}

type attacker struct {
	attack
	revoked tls.Certificate
	damage  damage
	open    atomic.Int64
}

// beHostile attacks until ctx ends, then reports what came of it.
func beHostile(ctx context.Context, task attack, out *json.Encoder) (err error) {
	a := attacker{attack: task}
	if a.revoked, err = tls.X509KeyPair(a.Chain, a.Key); err != nil {
		return err
	}
	a.run(ctx)
	return out.Encode(&a.damage)
}

// run makes connections at the rate, whatever becomes of them.
func (a *attacker) run(ctx context.Context) {
	var wg sync.WaitGroup
	begin := now()
	for i := 0; ctx.Err() == nil; {
		due := int(time.Since(begin).Seconds() * float64(a.Rate))
		for ; i < due; i++ {
			if a.open.Load() >= maxHostile {
				a.damage.Dropped++
				continue
			}
			a.open.Add(1)
			a.damage.Attempts++
			wg.Go(func() {
				a.connect(i)
				a.open.Add(-1)
			})
		}
		_ = pause(ctx, time.Millisecond) // the loop ends with ctx
	}
	wg.Wait()
}

// connect is one attempt, of four kinds in turn.
func (a *attacker) connect(i int) {
	from := &net.TCPAddr{IP: net.IPv4(127, 9, a.Net, byte(1+i%a.Addresses))} //nolint:gosec // at most 200
	c, err := (&net.Dialer{LocalAddr: from, Timeout: hostileTime}).Dial("tcp", a.Addr)
	if err != nil {
		atomic.AddInt64(&a.damage.Refused, 1)
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(now().Add(hostileTime))
	kind := i / a.Addresses % 4 // each address does all of them
	if kind == 0 {
		junk := make([]byte, 512)
		_, _ = rand.Read(junk)
		_, _ = c.Write(junk)
		_, _ = c.Read(junk)
		atomic.AddInt64(&a.damage.Refused, 1)
		return
	}
	// X25519 alone: the attacker makes it cheap for itself.
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}} //nolint:gosec // an attacker does not check
	if kind == 3 {
		config.Certificates = []tls.Certificate{a.revoked}
	}
	t := tls.Client(c, config)
	if err := t.Handshake(); err != nil {
		atomic.AddInt64(&a.damage.Refused, 1)
		return
	}
	atomic.AddInt64(&a.damage.Handshakes, 1)
	switch kind {
	case 2:
		a.enter(t, loginPacket(a.Target, rand.Text()))
	case 3:
		a.enter(t, device.ConnectPacket(a.Target))
	}
}

// enter sends a CONNECT and counts one that is accepted.
func (a *attacker) enter(t *tls.Conn, packet []byte) {
	answer := make([]byte, 4)
	if _, err := t.Write(packet); err != nil {
		return
	}
	if _, err := io.ReadFull(t, answer); err == nil && bytes.Equal(answer, device.Accepted()) {
		atomic.AddInt64(&a.damage.Admitted, 1)
	}
}

// loginPacket is a CONNECT with user name and password (MQTT 3.1.1, 3.1). Both,
// and the client id that is the name, are at most 100 octets.
func loginPacket(name, password string) []byte {
	p := device.ConnectPacket(name)
	p[9] |= 0xc0
	for _, s := range []string{name, password} {
		p = append(p, 0, byte(len(s))) //nolint:gosec // at most 100
		p = append(p, s...)
	}
	return append(binary.AppendUvarint([]byte{p[0]}, uint64(len(p)-2)), p[2:]...) //nolint:gosec // MQTT has the same form, and a CONNECT more than two octets
}
