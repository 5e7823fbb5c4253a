package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
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

// attack is what the attacker is told.
type attack struct {
	Addr      string `json:"addr"`
	Rate      int    `json:"rate"`      // connections a second
	Addresses int    `json:"addresses"` // it comes from
	Net       byte   `json:"net"`       // third octet of them
	Target    string `json:"target"`    // device whose secret it guesses
	Chain     []byte `json:"chain"`     // PEM of a revoked device
	Key       []byte `json:"key"`
}

// damage is what the attacker says in the end.
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

// beHostile attacks until standard input ends, then tells what came of it.
func beHostile(ctx context.Context, in io.Reader, out io.Writer) error {
	decoder := json.NewDecoder(in)
	var a attacker
	if err := decoder.Decode(&a.attack); err != nil {
		return err
	}
	var err error
	if a.revoked, err = tls.X509KeyPair(a.Chain, a.Key); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, in) // its end is what we wait for
		stop()
	}()
	a.run(ctx)
	return json.NewEncoder(out).Encode(&a.damage)
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
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
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
		a.say(t, loginPacket(a.Target, rand.Text()))
	case 3:
		a.say(t, device.ConnectPacket(a.Target))
	}
}

func (a *attacker) say(t *tls.Conn, packet []byte) {
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

// hostile is an attacker that runs.
type hostile struct {
	process *process
	in      io.Closer
	out     io.Reader
}

// attackWith starts the attacker.
func attackWith(a attack) (*hostile, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), self, hostileCommand) //nolint:gosec // this very program
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h := &hostile{in: in, out: out}
	if h.process, err = start(cmd, idleFor); err != nil {
		return nil, err
	}
	return h, json.NewEncoder(in).Encode(a)
}

// stop ends the attack and tells what came of it.
func (h *hostile) stop() (damage, error) {
	var d damage
	err := errors.Join(h.in.Close(), json.NewDecoder(h.out).Decode(&d))
	<-h.process.done
	if err != nil {
		return d, fmt.Errorf("the attacker: %w: %w", err, h.process.ended())
	}
	return d, h.process.err
}

// raiseFiles lets this process, and those that it starts, have as many sockets as the
// system allows.
func raiseFiles() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}

// pemOf writes a device's chain and key as the attacker reads them.
func pemOf(d *enrollee) (chain, key []byte, err error) {
	for _, der := range d.identity.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(d.key)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}
