package countersigntest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Distant puts a long way between clients and a listener: what either side sends
// arrives half of roundTrip later, as over a satellite or a narrow radio link. It
// returns the address that clients connect to.
func Distant(t testing.TB, addr string, roundTrip time.Duration) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				_ = near.Close()
				continue
			}
			wg.Go(func() { carry(far, near, roundTrip/2, stop) })
			wg.Go(func() { carry(near, far, roundTrip/2, stop) })
			wg.Go(func() { <-stop; _ = near.Close(); _ = far.Close() })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); close(stop); wg.Wait() })
	return ln.Addr().String()
}

// segment is what was read at once, and when it arrives.
type segment struct {
	data []byte
	at   time.Time
}

// carry moves octets, each delay later than it came, until the sender ends.
func carry(to, from net.Conn, delay time.Duration, stop <-chan struct{}) {
	way := make(chan segment, 1024)
	go func() {
		defer close(way)
		for {
			buf := make([]byte, 16<<10)
			n, err := from.Read(buf)
			if n > 0 {
				way <- segment{buf[:n], time.Now().Add(delay)} //nolint:forbidigo // a real delay
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range way {
		t := time.NewTimer(time.Until(p.at))
		select {
		case <-t.C:
		case <-stop:
			t.Stop()
		}
		if _, err := to.Write(p.data); err != nil {
			_ = from.Close()
			for range way { // the reader must not wait
			}
			return
		}
	}
	if w, ok := to.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}
