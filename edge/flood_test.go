package edge_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/edge"
)

// from dials from a loopback address of its own.
func from(addr, local string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}, Timeout: 20 * time.Second}
	return d.Dial("tcp", addr)
}

// greet admits a client that sends a w and echoes what it sends after that.
func greet(_ context.Context, c *edge.Conn) {
	word := make([]byte, 1)
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.ReadFull(c, word); err != nil || word[0] != 'w' {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	c.Admitted()
	_, _ = c.Write(word)
	_, _ = io.Copy(c, c)
}

// try connects once as an honest device does.
func try(t *testing.T, addr, local string) (*tls.Conn, bool) {
	t.Helper()
	c, err := from(addr, local)
	if err != nil {
		return nil, false
	}
	s := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	_ = s.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := s.Write([]byte("w")); err == nil {
		if _, err := io.ReadFull(s, make([]byte, 1)); err == nil {
			t.Cleanup(func() { _ = s.Close() })
			return s, true
		}
	}
	_ = s.Close()
	return nil, false
}

// enter connects as an honest device does, again and again if it must.
func enter(t *testing.T, addr, local string) (*tls.Conn, time.Duration) {
	t.Helper()
	begin := time.Now()
	for time.Since(begin) < 20*time.Second {
		if c, ok := try(t, addr, local); ok {
			return c, time.Since(begin)
		}
	}
	t.Fatal("an honest device did not come in within 20 s")
	return nil, 0
}

// hostiles attack at once.
const hostiles = 40

// hostile attacks once for each permit until ctx ends: garbage, drip-fed greetings,
// handshakes for nothing, wrong words, each from many addresses.
func hostile(ctx context.Context, wg *sync.WaitGroup, addr string, permits <-chan struct{}) *atomic.Int64 {
	var attempts atomic.Int64
	for w := range hostiles {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-permits:
				case <-ctx.Done():
					return
				}
				c, err := from(addr, fmt.Sprintf("127.9.%d.%d", w, 1+i%5))
				if err != nil {
					continue
				}
				attempts.Add(1)
				_ = c.SetDeadline(time.Now().Add(time.Second))
				switch w % 4 {
				case 0:
					_, _ = io.CopyN(c, rand.Reader, 300)
					_, _ = c.Read(make([]byte, 1))
				case 1:
					_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1})
					time.Sleep(50 * time.Millisecond)
				default:
					s := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
					if s.Handshake() == nil && w%4 == 3 {
						_, _ = s.Write([]byte("x"))
						_, _ = s.Read(make([]byte, 1))
					}
				}
				_ = c.Close()
			}
		})
	}
	return &attempts
}

// TestTheHonestComeInDuringAFlood has every attacker attack once for each try of an
// honest device, so that the flood is as heavy on a slow machine as on a fast one,
// and counts tries instead of time.
func TestTheHonestComeInDuringAFlood(t *testing.T) {
	g, addr := open(t, edge.Limits{PreAuth: 100, Tries: 20}, greet)
	held, ok := try(t, addr, "127.8.0.1")
	if !ok {
		t.Fatal("a device did not come in before the flood")
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	permits := make(chan struct{}, hostiles)
	flood := func() {
		for len(permits) < cap(permits) {
			permits <- struct{}{}
		}
	}
	attempts := hostile(ctx, &wg, addr, permits)
	defer wg.Wait()
	defer stop()
	for g.Stats().TurnedAway == 0 { // until addresses have no tries left
		flood()
		time.Sleep(time.Millisecond)
	}
	const most = 10
	worst := 0
	for i := range 20 {
		tries := 0
		for ok := false; !ok && tries < most; tries++ {
			flood()
			var c *tls.Conn
			if c, ok = try(t, addr, fmt.Sprintf("127.8.0.%d", 1+i%10)); ok { // ten that never came before
				_ = c.Close()
			} else if tries == most-1 {
				t.Fatalf("an honest device did not come in at %d tries, %+v", most, g.Stats())
			}
		}
		worst = max(worst, tries)
		if err := echo(held); err != nil {
			t.Fatalf("a session of before did not survive the flood: %v", err)
		}
	}
	t.Logf("%d attempts, an honest device came in at try %d at the latest, %+v", attempts.Load(), worst, g.Stats())
}

func echo(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("e")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestADeviceBehindTheAddressOfAnAttackerComesInAtLast(t *testing.T) {
	_, addr := open(t, edge.Limits{}, greet)
	c, _ := enter(t, addr, "127.8.1.1") // so the address is known
	_ = c.Close()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if c, err := from(addr, "127.8.1.1"); err == nil {
					_, _ = io.WriteString(c, "nonsense")
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}
			}
		})
	}
	defer wg.Wait()
	defer stop()
	time.Sleep(500 * time.Millisecond)
	_, took := enter(t, addr, "127.8.1.1")
	t.Logf("it took %v", took)
}

// many is a listener with as many connections as are asked for, each from an
// address of its own, that send garbage.
type many struct {
	n    atomic.Int64
	max  int64
	done chan struct{}
	once sync.Once
}

func (m *many) Accept() (net.Conn, error) {
	i := m.n.Add(1)
	if i > m.max {
		<-m.done
		return nil, net.ErrClosed
	}
	ip := net.IPv4(10, byte(i>>16), byte(i>>8), byte(i))
	if i%2 == 0 {
		ip = net.IP{0x20, 1, 0xd, 0xb8, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i), 15: 1}
	}
	return &garbage{remote: &net.TCPAddr{IP: ip, Port: 1}}, nil
}

func (m *many) Close() error   { m.once.Do(func() { close(m.done) }); return nil }
func (m *many) Addr() net.Addr { return &net.TCPAddr{} }

type garbage struct{ remote net.Addr }

func (*garbage) Read(b []byte) (int, error)         { return rand.Read(b) }
func (*garbage) Write(b []byte) (int, error)        { return len(b), nil }
func (*garbage) Close() error                       { return nil }
func (*garbage) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (g *garbage) RemoteAddr() net.Addr             { return g.remote }
func (*garbage) SetDeadline(_ time.Time) error      { return nil }
func (*garbage) SetReadDeadline(_ time.Time) error  { return nil }
func (*garbage) SetWriteDeadline(_ time.Time) error { return nil }

func TestMemoryIsBoundedUnderAHundredThousandAttempts(t *testing.T) {
	cert := certificate(t, "server")
	g := &edge.Gate{
		TLS:    edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }),
		Handle: serves(hold), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	before := heap()
	ln := &many{max: 100_000, done: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- g.Serve(t.Context(), ln) }()
	for ln.n.Load() <= ln.max || g.Stats().Open > 0 {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	grown := heap() - before
	t.Logf("%d KiB for %+v", grown>>10, g.Stats())
	if grown > 40<<20 {
		t.Errorf("100,000 attempts left %d MiB behind", grown>>20)
	}
	// The gate closes the listener: one that was closed before it is an error of Accept.
	if err := errors.Join(g.Close(t.Context()), <-served); err != nil {
		t.Error(err)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
