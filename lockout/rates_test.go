package lockout

import (
	"net/netip"
	"testing"
	"time"
)

// TestRatesAreBoundedInMemoryAndWork fills the rates with keys that are all in use, as an
// attacker with many addresses does. A guesser's rate must not be reset, a new key must
// be refused, and a call must not become slower.
func TestRatesAreBoundedInMemoryAndWork(t *testing.T) {
	var r Rates[int]
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	empty := quickest(func() { r.Take(-2, 60, 20, now) })
	for r.Take(-1, 60, 20, now) {
		continue
	}
	for i := range 3 * maxRates {
		r.Take(i, 60, 20, now)
	}
	if n := len(r.by.by); n != maxRates {
		t.Errorf("%d rates are kept, want %d", n, maxRates)
	}
	if r.Take(-1, 60, 20, now) {
		t.Error("a key that used its rate up has it back after a flood of others")
	}
	if r.Take(3*maxRates, 60, 20, now) {
		t.Error("a new key was accepted although all are in use")
	}
	if full := quickest(func() { r.Take(3*maxRates, 60, 20, now) }); full > 50*empty {
		t.Errorf("100 calls take %s while all are in use, %s before: all that is kept was looked at", full, empty)
	}
	now = now.Add(2 * time.Second)
	if !r.Take(3*maxRates, 60, 20, now) {
		t.Error("a new key was refused although others are at rest")
	}
	for i, want := range []bool{true, true, false} {
		if got := r.Take(-1, 60, 20, now); got != want {
			t.Errorf("try %d of two that 60 a minute allow after two seconds: got %t", i+1, got)
		}
	}
}

// BenchmarkRatesInAFlood takes from new keys while all that are kept are in use.
func BenchmarkRatesInAFlood(b *testing.B) {
	var r Rates[int]
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := 0; b.Loop(); i++ {
		r.Take(i, 60, 20, now)
	}
}

// TestTriesOfABlockedAddressAreItsOwn checks that a flood of other blocked addresses does
// not reset the tries of a guesser.
func TestTriesOfABlockedAddressAreItsOwn(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	l := Ledger{Now: func() time.Time { return now }}
	guesser := netip.MustParseAddr("192.0.2.1")
	for range blockAfter {
		l.Count(t.Context(), Failure{Addr: guesser})
	}
	n := 0
	for l.Try(guesser) == nil {
		n++
	}
	if n != triesAtOnce {
		t.Fatalf("got %d tries at once, want %d", n, triesAtOnce)
	}
	for i := range maxRates {
		l.tries.Take(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), triesPerMinute, triesAtOnce, now)
	}
	if err := l.Try(guesser); err == nil {
		t.Error("a guesser has its tries back")
	}
}

// quickest returns the shortest duration of a hundred calls of do, because other work of
// the machine makes some calls slow, but not all.
func quickest(do func()) time.Duration {
	best := time.Hour
	for range 20 {
		began := time.Now()
		for range 100 {
			do()
		}
		best = min(best, time.Since(began))
	}
	return best
}
