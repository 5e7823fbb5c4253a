package weakkey_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign/weakkey"
)

// TestKnownFindsEachPairOnce adds moduli of few primes, so that many share one, in
// portions of any size, and compares with looking at each pair.
func TestKnownFindsEachPairOnce(t *testing.T) {
	var primes []*big.Int
	for range 40 {
		primes = append(primes, prime(t, 48))
	}
	rapid.Check(t, func(t *rapid.T) {
		var k weakkey.Known
		var all []*big.Int
		got, want := map[string]int{}, map[string]int{}
		for range rapid.IntRange(1, 5).Draw(t, "portions") {
			var portion []*big.Int
			for range rapid.IntRange(0, 6).Draw(t, "moduli") {
				p, q := rapid.SampledFrom(primes).Draw(t, "p"), rapid.SampledFrom(primes).Draw(t, "q")
				portion = append(portion, new(big.Int).Mul(p, q))
			}
			before := slices.Clone(portion)
			first, pairs, err := k.Add(context.Background(), portion)
			if err != nil || first != len(all) {
				t.Fatalf("Add: got %d, %v, want %d", first, err, len(all))
			}
			if !slices.EqualFunc(before, portion, func(a, b *big.Int) bool { return a.Cmp(b) == 0 }) {
				t.Fatal("Add changed what it was given")
			}
			for _, p := range pairs {
				got[fmt.Sprint(p.I, p.J, p.Factor)]++
			}
			all = append(all, portion...)
		}
		for j, m := range all {
			if slices.ContainsFunc(all[:j], func(n *big.Int) bool { return n.Cmp(m) == 0 }) {
				i := slices.IndexFunc(all, func(n *big.Int) bool { return n.Cmp(m) == 0 })
				want[fmt.Sprint(i, j, m)]++ // the same key again: with its first occurrence alone
				continue
			}
			for i, n := range all[:j] {
				if g := new(big.Int).GCD(nil, nil, n, m); g.Cmp(big.NewInt(1)) != 0 {
					want[fmt.Sprint(i, j, g)]++
				}
			}
		}
		// Within one portion a repeated modulus is not compared with those after it.
		maps.DeleteFunc(want, func(pair string, _ int) bool { _, found := got[pair]; return !found && repeats(all, pair) })
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("pairs (-want +got):\n%s", d)
		}
	})
}

// repeats reports whether the first of a pair repeats an earlier modulus, whose own
// pair has the same.
func repeats(all []*big.Int, pair string) bool {
	var i int
	if _, err := fmt.Sscan(pair, &i); err != nil {
		return false
	}
	return slices.ContainsFunc(all[:i], func(n *big.Int) bool { return n.Cmp(all[i]) == 0 })
}

func TestKnownForgetsTheOldest(t *testing.T) {
	k := weakkey.Known{Max: 2048}
	shared := prime(t, 64)
	first := new(big.Int).Mul(shared, prime(t, 64))
	add := func(moduli ...*big.Int) []weakkey.Shared {
		t.Helper()
		_, pairs, err := k.Add(t.Context(), moduli)
		if err != nil {
			t.Fatal(err)
		}
		return pairs
	}
	add(first)
	if pairs := add(new(big.Int).Mul(shared, prime(t, 64))); len(pairs) != 1 || pairs[0].I != 0 || pairs[0].J != 1 {
		t.Errorf("while it is kept: got %v, want the pair of 0 and 1", pairs)
	}
	var others []*big.Int
	for range 4096 {
		others = append(others, new(big.Int).Mul(prime(t, 32), prime(t, 32)))
	}
	add(others...)
	if n := k.Len(); n > 4096 {
		t.Errorf("got %d kept, want no more than Max and a batch", n)
	}
	if pairs := add(new(big.Int).Mul(shared, prime(t, 64))); len(pairs) != 0 {
		t.Errorf("when it is dropped: got %v, want none", pairs)
	}
	if _, ok := k.Has(first); ok {
		t.Error("a dropped modulus is still known")
	}
	if at, ok := k.Has(others[4095]); !ok || at != 4097 {
		t.Errorf("the newest: got %d, %v, want 4097", at, ok)
	}
}

func TestKnownIsAsBeforeWhenAddIsCanceled(t *testing.T) {
	var k weakkey.Known
	a, b := new(big.Int).Mul(prime(t, 64), prime(t, 64)), new(big.Int).Mul(prime(t, 64), prime(t, 64))
	if _, _, err := k.Add(t.Context(), []*big.Int{a}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := k.Add(ctx, []*big.Int{b}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if _, ok := k.Has(b); ok || k.Len() != 1 {
		t.Errorf("got %d kept, the new one %v, want the old one alone", k.Len(), ok)
	}
	if first, _, err := k.Add(t.Context(), []*big.Int{b}); err != nil || first != 1 {
		t.Errorf("afterwards: got number %d, %v, want 1", first, err)
	}
}
