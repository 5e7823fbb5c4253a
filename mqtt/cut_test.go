package mqtt_test

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestCutEndsAStalledReader floods a device that stops reading until its socket is
// full, then cuts it while it goes on publishing.
func TestCutEndsAStalledReader(t *testing.T) {
	g := start(t, engine{})
	for _, level := range []byte{4, 5} {
		id := fmt.Sprintf("stalled%d", level)
		d := g.join(t, id, level)
		_ = d.raw.SetReadBuffer(4 << 10)
		d.send(d.subscribe(1, "devices/"+id+"/down/#"))
		d.recv()
		var delivered uint64
		payload := make([]byte, 100<<10)
		for range 200 { // until no more of it reaches the socket
			g.send(t, "devices/"+id+"/down/x", payload)
		}
		time.Sleep(200 * time.Millisecond)
		delivered = g.Stats().Delivered
		if delivered > 150 {
			t.Fatalf("the device did not stall: %d delivered", delivered)
		}
		var passed atomic.Int64
		late := make(chan string, 10_000)
		listen(t, g, "devices/"+id+"/up/#", late)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				_ = d.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := d.Write(d.publish(0, 0, "devices/"+id+"/up/x", "x")); err != nil {
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		})
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		n := g.Index.Cut(countersign.Cut{Device: id, Reason: "compromised"})
		took := time.Since(began)
		if n != 1 || took > 50*time.Millisecond {
			t.Errorf("level %d: Cut of a stalled reader: got %d sessions in %v, want 1 under 50ms", level, n, took)
		}
		time.Sleep(50 * time.Millisecond) // what the engine had is with the platform
		for len(late) > 0 {
			<-late
			passed.Add(1)
		}
		time.Sleep(300 * time.Millisecond)
		if len(late) > 0 || passed.Load() == 0 {
			t.Errorf("level %d: %d messages before the cut, %d long after; want some and none", level, passed.Load(), len(late))
		}
		close(stop)
		wg.Wait()
		kit.Eventually(t, "the report", func() bool { return len(g.guard.reasons(id)) == 1 })
		if why := g.guard.reasons(id)[0]; why != "cut: compromised" {
			t.Errorf("Closed: got %q", why)
		}
	}
}

func TestCutEndsFiveHundredSessionsAtOnce(t *testing.T) {
	const sessions = 500
	g := start(t, engine{})
	cert := g.issue("fleet", time.Hour)
	devices := make([]*device, sessions)
	for i := range devices {
		devices[i] = g.dialWith(t, fmt.Sprint(i), cert)
		devices[i].hello(5, fmt.Sprintf("fleet:%d", i))
	}
	other := g.join(t, "bystander", 5)
	if got := len(g.Index.Sessions()); got != sessions+1 {
		t.Fatalf("Sessions: got %d, want %d", got, sessions+1)
	}
	began := time.Now()
	ref := countersign.CertRef{Issuer: "test", Serial: countersign.SerialOf(cert.Leaf.SerialNumber)}
	n := g.Index.Cut(countersign.Cut{Cert: ref, Reason: "compromised"})
	took := time.Since(began)
	if n != sessions {
		t.Errorf("Cut: got %d sessions, want %d", n, sessions)
	}
	t.Logf("cut %d sessions in %v", n, took)
	if took > 500*time.Millisecond {
		t.Errorf("Cut took %v", took)
	}
	told := 0
	for _, d := range devices {
		if kind, body, err := d.read(); err == nil && kind == 0xE0 && body[0] == 0x98 && strings.Contains(string(body), "compromised") {
			told++
		}
	}
	if told < sessions*9/10 {
		t.Errorf("told 0x98: %d of %d", told, sessions)
	}
	other.send([]byte{0xC0, 0})
	other.expect("the bystander's PINGRESP", []byte{0xD0, 0})
}

// TestRevokeRacingConnectNeverSlips revokes at a random moment of the connect. The
// revocation is recorded first and cut second, as the desk does it.
func TestRevokeRacingConnectNeverSlips(t *testing.T) {
	g := start(t, engine{})
	const rounds = 150
	for i := range rounds {
		id := fmt.Sprintf("racer%d", i)
		cert := g.issue(id, time.Hour)
		g.guard.mu.Lock()
		g.guard.slow = func(string) { time.Sleep(time.Duration(rand.IntN(1500)) * time.Microsecond) }
		g.guard.mu.Unlock()
		d := g.dialWith(t, id, cert)
		d.send(connectPacket(byte(4+i%2), id, 2, 60, nil))
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
			g.guard.refuse(id, countersign.CertIsRevoked)
			g.Index.Cut(countersign.Cut{Device: id, Reason: "revoked"})
		})
		wg.Wait()
		_ = d.SetReadDeadline(time.Now().Add(5 * time.Second))
		for {
			if _, _, err := d.read(); err != nil {
				if strings.Contains(err.Error(), "timeout") {
					t.Fatalf("round %d: the session outlived the revocation", i)
				}
				break
			}
		}
	}
	kit.Eventually(t, "an empty index", func() bool { return g.Index.Len() == 0 })
}

func TestSessionEndsAtNotAfter(t *testing.T) {
	g := start(t, engine{})
	cert := g.issue("short", 2*time.Second)
	d := g.dialWith(t, "short", cert)
	d.hello(5, "short")
	d.gone("expiry", 0xA0)
	if late := time.Since(cert.Leaf.NotAfter); late < 0 || late > time.Second {
		t.Errorf("the session ended %v after NotAfter", late)
	}
	kit.Eventually(t, "the report", func() bool { return len(g.guard.reasons("short")) == 1 })
	if why := g.guard.reasons("short")[0]; why != "expired" {
		t.Errorf("Closed: got %q", why)
	}
}

func TestCutDropsTheWill(t *testing.T) {
	g := start(t, engine{})
	got := make(chan string, 10)
	listen(t, g, "devices/#", got)
	join := func(id string) *device {
		d := g.dial(t, id)
		d.send(connectPacket(4, id, 6, 60, cat(str("devices/"+id+"/up/will"), str("bye"))))
		d.recv()
		return d
	}
	join("cut-one")
	lost := join("lost-one")
	g.Index.Cut(countersign.Cut{Device: "cut-one", Reason: "revoked"})
	_ = lost.raw.SetLinger(0)
	_ = lost.raw.Close()
	select {
	case m := <-got:
		if m != "devices/lost-one/up/will bye" {
			t.Errorf("the platform got %q, want the will of lost-one", m)
		}
	case <-time.After(5 * time.Second):
		t.Error("the will of a lost device was not published")
	}
	select {
	case m := <-got:
		t.Errorf("the platform got %q, want nothing more", m)
	case <-time.After(300 * time.Millisecond):
	}
	kit.Eventually(t, "the report", func() bool { return len(g.guard.reasons("lost-one")) == 1 })
	if why := g.guard.reasons("lost-one")[0]; why != "connection_lost" {
		t.Errorf("Closed: got %q", why)
	}
}

func TestTakeoverEndsTheOlderSession(t *testing.T) {
	g := start(t, engine{})
	cert := g.issue("dev", time.Hour)
	join := func() *device {
		d := g.dialWith(t, "dev", cert)
		d.hello(5, "dev")
		return d
	}
	older := join()
	newer := join()
	older.gone("takeover", 0x8E)
	newer.send([]byte{0xC0, 0})
	newer.expect("PINGRESP", []byte{0xD0, 0})
	var alive atomic.Int64
	var wg sync.WaitGroup
	racers := make([]*device, 8)
	for i := range racers {
		racers[i] = g.dialWith(t, "dev", cert)
	}
	for _, d := range racers {
		wg.Go(func() {
			_, _ = d.Write(connectPacket(4, "dev", 2, 60, nil))
			_ = d.SetReadDeadline(time.Now().Add(2 * time.Second))
			for {
				if _, _, err := d.read(); err != nil {
					if strings.Contains(err.Error(), "timeout") {
						alive.Add(1)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	if n := alive.Load(); n != 1 || g.Index.Len() != 1 {
		t.Errorf("after 8 racing connects: %d alive, %d in the index; want 1", n, g.Index.Len())
	}
	for _, why := range g.guard.reasons("dev") {
		if why != "taken_over" {
			t.Errorf("Closed: got %q, want taken_over", why)
		}
	}
}

func TestKeepAliveIsEnforced(t *testing.T) {
	g := start(t, engine{})
	d := g.dial(t, "dev")
	d.send(connectPacket(5, "dev", 2, 1, nil))
	d.recv()
	began := time.Now()
	d.gone("silence", 0x8D)
	if silent := time.Since(began); silent < 1400*time.Millisecond || silent > 3*time.Second {
		t.Errorf("closed after %v, want one and a half keep alives of 1 s", silent)
	}
	kit.Eventually(t, "the report", func() bool { return len(g.guard.reasons("dev")) == 1 })
	if why := g.guard.reasons("dev")[0]; why != "keep_alive" {
		t.Errorf("Closed: got %q", why)
	}
}

// TestKeepAliveCountsFromTheLastPacket has a device send half a packet before and half
// behind the time at which its silence since CONNECT would have ended it.
func TestKeepAliveCountsFromTheLastPacket(t *testing.T) {
	g := start(t, engine{})
	d := g.dial(t, "dev")
	d.send(connectPacket(5, "dev", 2, 1, nil))
	d.recv()
	time.Sleep(time.Second)
	d.send([]byte{0xC0, 0})
	d.expect("PINGRESP", []byte{0xD0, 0})
	time.Sleep(300 * time.Millisecond)
	d.send([]byte{0xC0})
	time.Sleep(400 * time.Millisecond)
	began := time.Now()
	d.send([]byte{0})
	d.expect("PINGRESP in two halves", []byte{0xD0, 0})
	d.gone("silence", 0x8D)
	if silent := time.Since(began); silent < 1400*time.Millisecond {
		t.Errorf("closed after %v, want one and a half keep alives of 1 s", silent)
	}
}

func TestCloseTellsTheDevices(t *testing.T) {
	g := start(t, engine{})
	d := g.join(t, "dev", 5)
	stranger := g.dial(t, "slow") // sends no CONNECT
	began := time.Now()
	if err := g.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	d.gone("shutdown", 0x8B)
	stranger.gone("shutdown", 0)
}

func TestMalformedStormLeavesTheGatewayWell(t *testing.T) {
	g := start(t, engine{})
	cert := g.issue("storm", time.Hour)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			d := g.dialWith(t, "storm", cert)
			if i%2 == 0 {
				d.send(connectPacket(byte(4+i/2%2), fmt.Sprintf("storm:%d", i), 2, 60, nil))
			}
			b := make([]byte, 1+r.IntN(20_000))
			for j := range b {
				b[j] = byte(r.Uint32())
			}
			if _, err := d.Write(b); err == nil {
				_ = d.Conn.(*tls.Conn).CloseWrite()
			}
			_ = d.SetReadDeadline(time.Now().Add(10 * time.Second))
			for {
				if _, _, err := d.read(); err != nil {
					if strings.Contains(err.Error(), "timeout") {
						t.Errorf("connection %d is still open", i)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	g.join(t, "fine", 5)
	kit.Eventually(t, "one session", func() bool { return g.Index.Len() == 1 })
}

func BenchmarkConnect(b *testing.B) {
	g := start(b, engine{})
	cert := g.issue("bench", time.Hour)
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			d := g.dialWith(b, "bench", cert)
			d.hello(4, fmt.Sprintf("bench:%d", n.Add(1)))
			_, _ = d.Write([]byte{0xE0, 0})
			_ = d.raw.Close()
		}
	})
}
