package access_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign-iot/countersign/access"
)

// ledger gives one with a clock that the test turns.
func ledger() (*access.Ledger, func(time.Duration)) {
	now := start
	return &access.Ledger{Now: func() time.Time { return now }}, func(d time.Duration) { now = now.Add(d) }
}

func TestFailCountsBySource(t *testing.T) {
	l, turn := ledger()
	for _, tt := range []struct {
		addr string
		want int
	}{
		{"192.0.2.1", 1},
		{"192.0.2.1", 2},
		{"192.0.2.2", 1},
		{"::ffff:192.0.2.1", 3}, // the same address, as a dual-stack socket shows it
		{"2001:db8::1", 1},
		{"2001:db8::2", 2}, // the same /64
		{"2001:db8:0:0:ffff::", 3},
		{"2001:db8:0:1::1", 1},
		{"fe80::1%eth0", 1},
		{"fe80::2%eth1", 2},
	} {
		if got := l.Fail(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.addr, got, tt.want)
		}
	}
	if l.Fail(netip.Addr{}) != 1 || l.Fail(netip.Addr{}) != 2 {
		t.Error("no address is no address of its own")
	}
	turn(10 * time.Minute)
	if got := l.Fail(netip.MustParseAddr("192.0.2.1")); got != 4 {
		t.Errorf("after ten minutes: got %d, want 4", got)
	}
	turn(10*time.Minute + time.Nanosecond)
	if got := l.Fail(netip.MustParseAddr("192.0.2.1")); got != 1 {
		t.Errorf("forgiven: got %d, want 1", got)
	}
}

func addr(n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

// TestLedgerIsBounded floods it with addresses. It stays small and quick, and whoever
// keeps failing is not forgotten for the others.
func TestLedgerIsBounded(t *testing.T) {
	l, turn := ledger()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stubborn := netip.MustParseAddr("2001:db8::1")
	count := 0
	for i := range 200_000 {
		if i%1000 == 0 {
			count = l.Fail(stubborn)
		}
		turn(time.Millisecond)
		if got := l.Fail(addr(i)); got != 1 {
			t.Fatalf("address %d: got %d failures, want 1", i, got)
		}
	}
	if count != 200 {
		t.Errorf("the stubborn one: got %d failures, want 200", count)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	// 64k addresses of about 100 octets; 200,000 would take over 20 MB.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the ledger takes %d octets", grown)
	}
	runtime.KeepAlive(l)
}

func TestFailFromManyAtOnce(t *testing.T) {
	l, _ := ledger()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				l.Fail(addr(1))
			}
		})
	}
	wg.Wait()
	if got := l.Fail(addr(1)); got != 8001 {
		t.Errorf("got %d failures, want 8001", got)
	}
}

func TestDelayGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := ledger()
		for _, tt := range []struct {
			failures int
			want     time.Duration
		}{
			{-1, 200 * time.Millisecond},
			{0, 200 * time.Millisecond},
			{1, 200 * time.Millisecond},
			{2, 400 * time.Millisecond},
			{5, 3200 * time.Millisecond},
			{6, 5 * time.Second},
			{1 << 30, 5 * time.Second},
		} {
			began := time.Now()
			l.Delay(t.Context(), tt.failures)
			if got := time.Since(began); got != tt.want {
				t.Errorf("%d failures: got %v, want %v", tt.failures, got, tt.want)
			}
		}
	})
}

func TestDelayEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := ledger()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		l.Delay(ctx, 100)
		if got := time.Since(began); got != time.Second {
			t.Errorf("got %v, want the context's second", got)
		}
	})
}

// TestDelayHoldsBoundedNumber has more callers wait than may: the rest are answered at once.
func TestDelayHoldsBoundedNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := ledger()
		var wg sync.WaitGroup
		for range 512 {
			wg.Go(func() { l.Delay(t.Context(), 100) })
		}
		synctest.Wait()
		began := time.Now()
		l.Delay(t.Context(), 100)
		if got := time.Since(began); got != 0 {
			t.Errorf("one too many waited %v", got)
		}
		wg.Wait()
		began = time.Now()
		l.Delay(t.Context(), 1)
		if got := time.Since(began); got != 200*time.Millisecond {
			t.Errorf("after the others left: got %v, want 200ms", got)
		}
	})
}
