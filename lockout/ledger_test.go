package lockout_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// ledger returns a Ledger in memory with a clock that the test advances.
func ledger() (*lockout.Ledger, *kit.Clock) {
	c := kit.NewClock(start)
	return &lockout.Ledger{Now: c.Now}, c
}

// failures counts n failures of an address and returns the last outcome.
func failures(t *testing.T, l *lockout.Ledger, addr string, n int) (o lockout.Outcome) {
	t.Helper()
	for range n {
		o = l.Count(t.Context(), lockout.Failure{Addr: netip.MustParseAddr(addr), Door: "est", Code: countersign.BadCredential})
	}
	return o
}

// blocked reports whether an address is refused, and checks the error.
func blocked(t *testing.T, l *lockout.Ledger, addr string) bool {
	t.Helper()
	err := l.Check(netip.MustParseAddr(addr))
	if err == nil {
		return false
	}
	if e := countersign.Public(err); e.Code != countersign.RateLimited || e.RetryAfter <= 0 || e.Next == "" {
		t.Errorf("Check(%s): got %+v, want rate_limited with a time and a next step", addr, e)
	}
	return true
}

func TestCountGoesBySource(t *testing.T) {
	l, c := ledger()
	for _, tt := range []struct {
		addr string
		want int
	}{
		{"192.0.2.1", 1},
		{"192.0.2.1", 2},
		{"192.0.2.2", 1},
		{"::ffff:192.0.2.1", 3}, // the same address, in the form of a dual-stack socket
		{"64:ff9b::192.0.2.1", 4},
		{"64:ff9b::192.0.2.9", 1}, // all of IPv4 is in this /64
		{"2001:db8::1", 1},
		{"2001:db8::2", 2}, // the same /64
		{"2001:db8:0:0:ffff::", 3},
		{"2001:db8:0:1::1", 1},
		{"fe80::1%eth0", 1},
		{"fe80::2%eth1", 2},
	} {
		if got := failures(t, l, tt.addr, 1).Failures; got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.addr, got, tt.want)
		}
	}
	c.Advance(10 * time.Minute)
	if got := failures(t, l, "192.0.2.1", 1).Failures; got != 5 {
		t.Errorf("at the end of the window: got %d, want 5", got)
	}
	c.Advance(time.Microsecond)
	if got := failures(t, l, "192.0.2.1", 1).Failures; got != 1 {
		t.Errorf("after the window: got %d, want 1", got)
	}
}

func TestNoAddressIsNeverBlocked(t *testing.T) {
	l, _ := ledger()
	for range 100 {
		if o := l.Count(t.Context(), lockout.Failure{}); o.Blocked || o.Delay != 0 {
			t.Fatalf("got %+v", o)
		}
	}
	if err := l.Check(netip.Addr{}); err != nil {
		t.Error(err)
	}
}

func TestBlockComesAtTheThresholdAndEnds(t *testing.T) {
	for _, tt := range []struct{ fails, other, free string }{
		{"192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"},
		{"2001:db8::1", "2001:db8::dead:beef", "2001:db8:0:1::1"},
		{"fe80::1%eth0", "fe80::1", "fe81::1"},
	} {
		l, c := ledger()
		if o := failures(t, l, tt.fails, 9); o.Blocked || blocked(t, l, tt.fails) {
			t.Errorf("%s: blocked after 9 failures: %+v", tt.fails, o)
		}
		o := failures(t, l, tt.fails, 1)
		if !o.Blocked || o.Failures != 10 || !o.Until.Equal(start.Add(10*time.Minute)) {
			t.Errorf("%s: got %+v, want blocked for ten minutes", tt.fails, o)
		}
		if !blocked(t, l, tt.fails) || !blocked(t, l, tt.other) || blocked(t, l, tt.free) {
			t.Errorf("want %s and %s blocked, %s free", tt.fails, tt.other, tt.free)
		}
		if o := failures(t, l, tt.fails, 1000); o.Blocked || !o.Until.Equal(start.Add(10*time.Minute)) {
			t.Errorf("%s: failures under way prolong the block: %+v", tt.fails, o)
		}
		c.Advance(10*time.Minute - time.Microsecond)
		if !blocked(t, l, tt.fails) {
			t.Errorf("%s: free before its end", tt.fails)
		}
		c.Advance(time.Microsecond)
		if blocked(t, l, tt.fails) {
			t.Errorf("%s: blocked after its end", tt.fails)
		}
	}
}

// TestBlocksGrowAndAlwaysEnd counts failures of one address for a month without a pause.
func TestBlocksGrowAndAlwaysEnd(t *testing.T) {
	l, c := ledger()
	const guesser = "192.0.2.1"
	var lengths []time.Duration
	for c.Now().Before(start.Add(30 * 24 * time.Hour)) {
		o := failures(t, l, guesser, 10)
		if !o.Blocked {
			t.Fatalf("ten failures did not block: %+v", o)
		}
		lengths = append(lengths, o.Until.Sub(c.Now()))
		c.Advance(o.Until.Sub(c.Now()))
		if blocked(t, l, guesser) {
			t.Fatal("the block did not end")
		}
	}
	want := 10 * time.Minute
	for i, got := range lengths {
		if got != want {
			t.Fatalf("block %d: got %v, want %v", i+1, got, want)
		}
		want = min(2*want, 24*time.Hour)
	}
	c.Advance(7 * 24 * time.Hour)
	if o := failures(t, l, guesser, 10); o.Until.Sub(c.Now()) != 10*time.Minute {
		t.Errorf("a week after the last block: got %v, want ten minutes again", o.Until.Sub(c.Now()))
	}
}

// TestBlockFromTheFutureDoesNotHold covers a block that was made by a wrong clock.
func TestBlockFromTheFutureDoesNotHold(t *testing.T) {
	l, c := ledger()
	c.Advance(100 * 365 * 24 * time.Hour)
	failures(t, l, "192.0.2.1", 10)
	failures(t, l, "192.0.2.2", 9)
	c.Advance(-100 * 365 * 24 * time.Hour)
	if blocked(t, l, "192.0.2.1") {
		t.Error("blocked by a block of the next century")
	}
	if o := failures(t, l, "192.0.2.2", 1); o.Failures != 1 {
		t.Errorf("got %d failures, want those of the next century forgotten", o.Failures)
	}
}

func TestAllowedNetworksAreNeitherCountedNorBlocked(t *testing.T) {
	l, _ := ledger()
	l.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	for _, a := range []string{"192.0.2.1", "::ffff:192.0.2.1", "2001:db8:1::1"} {
		if o := failures(t, l, a, 50); o.Blocked || o.Delay != 0 || blocked(t, l, a) {
			t.Errorf("%s: got %+v, want an allowed address left alone", a, o)
		}
	}
	if o := failures(t, l, "192.0.3.1", 10); !o.Blocked {
		t.Error("a neighbor of the allowed network is not blocked")
	}
}

// TestAttackerCannotLockADeviceOut counts 10,000 failures in a device's name.
func TestAttackerCannotLockADeviceOut(t *testing.T) {
	l, _ := ledger()
	found := 0
	for i := range 10_000 {
		o := l.Count(t.Context(), lockout.Failure{Addr: addr(i), Device: "pump-7", Credential: "tok1", Door: "est", Code: countersign.BadCredential})
		if o.Blocked || !o.Until.IsZero() {
			t.Fatalf("failure %d: a first failure of an address made a block", i)
		}
		if o.ByDevice != o.ByCredential || o.DeviceFailures != i+1 {
			t.Fatalf("failure %d: got %+v", i, o)
		}
		if o.ByDevice {
			found++
		}
		if i > 10 && o.Delay != 5*time.Second {
			t.Fatalf("failure %d: answered after %v, want 5s", i, o.Delay)
		}
	}
	if found != 4 {
		t.Errorf("got %d findings, want those of 10, 100, 1000 and 10000", found)
	}
	if blocked(t, l, "198.51.100.7") {
		t.Error("the device's own address is refused")
	}
	l.Succeed("pump-7")
	o := l.Count(t.Context(), lockout.Failure{Addr: addr(1 << 20), Device: "pump-7"})
	if o.DeviceFailures != 1 {
		t.Errorf("after the device was admitted: got %d failures in its name, want 1", o.DeviceFailures)
	}
}

// TestSameAddressAsTheAttacker covers a device behind the attacker's NAT. With its
// certificate it is admitted; with a credential that could be guessed it must wait.
func TestSameAddressAsTheAttacker(t *testing.T) {
	l, _ := ledger()
	failures(t, l, "192.0.2.1", 10)
	if err := l.CheckProven(netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Errorf("a device with its certificate: %v", err)
	}
	if !blocked(t, l, "192.0.2.1") {
		t.Error("a token from the attacker's address is looked at")
	}
}

func TestSuccessTakesNothingOffTheAddress(t *testing.T) {
	l, _ := ledger()
	failures(t, l, "192.0.2.1", 9)
	l.Succeed("pump-7") // the attacker's own device
	if o := failures(t, l, "192.0.2.1", 1); !o.Blocked {
		t.Errorf("got %+v, want the tenth failure to block", o)
	}
}

func TestImpossibleNamesAreNotCounted(t *testing.T) {
	l, _ := ledger()
	for _, name := range []string{"", "a b", "\x00", string(make([]byte, 200))} {
		o := l.Count(t.Context(), lockout.Failure{Addr: addr(1), Device: name, Credential: name})
		if o.DeviceFailures != 0 || o.CredentialFailures != 0 {
			t.Errorf("%q: got %+v", name, o)
		}
	}
}

func addr(n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

// TestLedgerIsBounded floods a ledger with addresses and names. It must stay small, and
// must not forget an address that keeps failing, nor a block.
func TestLedgerIsBounded(t *testing.T) {
	l, c := ledger()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	failures(t, l, "192.0.2.1", 10)
	failures(t, l, "2001:db8::1", 9)
	for i := range 1_000_000 {
		if i%1000 == 0 {
			c.Advance(time.Millisecond)
		}
		f := lockout.Failure{Addr: addr(i + 1<<24)}
		if i%5 == 0 { // three times as many as there is room for
			f.Device, f.Credential = addr(i).String(), addr(i).String()
		}
		l.Count(t.Context(), f)
	}
	if !blocked(t, l, "192.0.2.1") {
		t.Error("a block was forgotten for noise")
	}
	if o := failures(t, l, "2001:db8::1", 1); !o.Blocked {
		t.Errorf("the stubborn one: got %+v, want it blocked at its tenth failure", o)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if _, n := l.Held(); n > 3*lockout.MaxTallies {
		t.Errorf("holds %d tallies", n)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the ledger takes %d octets", grown)
	}
	runtime.KeepAlive(l)
}

// TestBlocksAreBounded blocks more addresses than there is room for. Each new block must
// be in force, and replace an earlier one.
func TestBlocksAreBounded(t *testing.T) {
	l, c := ledger()
	for i := range lockout.MaxBlocks + 1000 {
		c.Advance(time.Microsecond)
		a := addr(i + 1<<24)
		for range 10 {
			l.Count(t.Context(), lockout.Failure{Addr: a})
		}
		if l.Check(a) == nil {
			t.Fatalf("address %d: not blocked", i)
		}
	}
	if n, _ := l.Held(); n != lockout.MaxBlocks {
		t.Errorf("holds %d blocks, want %d", n, lockout.MaxBlocks)
	}
}

func TestCountFromManyAtOnce(t *testing.T) {
	l, _ := ledger()
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				o := l.Count(t.Context(), lockout.Failure{Addr: addr(1), Device: "pump-7"})
				_ = l.Check(addr(2))
				if o.Blocked {
					mu.Lock()
					made++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("got %d blocks, want 1", made)
	}
	if got := l.Count(t.Context(), lockout.Failure{Addr: addr(3), Device: "pump-7"}).DeviceFailures; got != 8001 {
		t.Errorf("got %d failures in the device's name, want 8001", got)
	}
}

func TestHoldGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := ledger()
		for i, want := range []time.Duration{200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000} {
			o := failures(t, l, "192.0.2.1", 1)
			began := time.Now()
			l.Hold(t.Context(), o)
			if got := time.Since(began); got != want*time.Millisecond {
				t.Errorf("failure %d: got %v, want %v", i+1, got, want*time.Millisecond)
			}
		}
	})
}

func TestHoldEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := ledger()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		l.Hold(ctx, lockout.Outcome{Delay: time.Hour})
		if got := time.Since(began); got != time.Second {
			t.Errorf("got %v, want the context's second", got)
		}
	})
}

// TestHoldHoldsBoundedNumber lets more callers wait than the limit: Hold must return at
// once for the rest.
func TestHoldHoldsBoundedNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := ledger()
		slow := lockout.Outcome{Delay: 5 * time.Second}
		var wg sync.WaitGroup
		for range 512 {
			wg.Go(func() { l.Hold(t.Context(), slow) })
		}
		synctest.Wait()
		began := time.Now()
		l.Hold(t.Context(), slow)
		if got := time.Since(began); got != 0 {
			t.Errorf("one too many waited %v", got)
		}
		wg.Wait()
		began = time.Now()
		l.Hold(t.Context(), slow)
		if got := time.Since(began); got != slow.Delay {
			t.Errorf("after the others left: got %v, want %v", got, slow.Delay)
		}
	})
}

// BenchmarkCheck measures Check while 10,000 addresses are blocked.
func BenchmarkCheck(b *testing.B) {
	l, _ := ledger()
	for i := range 100_000 {
		l.Count(b.Context(), lockout.Failure{Addr: addr(i / 10)})
	}
	free := netip.MustParseAddr("203.0.113.1")
	for b.Loop() {
		if err := l.Check(free); err != nil {
			b.Fatal(err)
		}
	}
}

func TestBlockWantsAReasonThatIsText(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := &lockout.Ledger{DB: db, Now: func() time.Time { return start }}
		for _, reason := range []string{"a\x00b", "\xff", strings.Repeat("x", 201)} {
			b := lockout.Block{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Reason: reason, Until: start.Add(time.Hour)}
			if _, err := l.Block(t.Context(), b, "operator:test", "cli"); countersign.CodeOf(err) != countersign.BadRequest {
				t.Errorf("reason %.10q: got %v, want bad_request", reason, err)
			}
		}
	})
}
