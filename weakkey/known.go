package weakkey

import (
	"context"
	"crypto/sha256"
	"maps"
	"math/big"
	"slices"

	"github.com/countersign-iot/countersign"
)

// Known is a set of RSA moduli that each new one is compared with, by Bernstein's product
// and remainder trees. It keeps them in batches with their products, so that one division shows whether a new modulus has
// a factor in common with any of 2,048. The zero value is empty.
//
// With 2048 bits each, 50,000 moduli take 26 MB. Comparing one new modulus with all
// of them takes some 50 ms, and a batch of 2,048 new ones some 10 s.
type Known struct {
	// Max is how many are kept, the newest: 0 is MaxModuli. It is rounded up to batches.
	Max int

	batches []*batch
	first   int                       // the number of the oldest that is kept
	next    int                       // the number of the next that is added
	by      map[[sha256.Size]byte]int // number by modulus
}

// batch is a run of moduli with consecutive numbers.
type batch struct {
	first   int
	moduli  []*big.Int
	product *big.Int
}

// Len returns how many moduli are kept.
func (k *Known) Len() int { return k.next - k.first }

// Oldest returns the number of the oldest that is kept.
func (k *Known) Oldest() int { return k.first }

// Has reports whether a modulus is in the set, and its number.
func (k *Known) Has(n *big.Int) (number int, ok bool) {
	number, ok = k.by[sha256.Sum256(n.Bytes())]
	return number, ok
}

// Add adds moduli and numbers them, in their order, from the number that it returns.
// It reports the pairs that share a factor, each of them one of the new, by number. A
// modulus that is in the set already is reported with itself as the factor. Errors:
// code BadRequest for a modulus that is not positive or above 16384 bits, TooLarge
// where there are more than MaxPairs pairs, or the context's. If it fails, nothing is
// added, except with TooLarge, which is returned with the first pairs.
func (k *Known) Add(ctx context.Context, moduli []*big.Int) (first int, shared []Shared, err error) {
	if err := checkModuli(moduli); err != nil {
		return 0, nil, err
	}
	first = k.next
	for from := 0; from < len(moduli); from += batchModuli {
		pairs, err := k.add(ctx, moduli[from:min(from+batchModuli, len(moduli))])
		if err != nil {
			k.forget(first)
			return 0, nil, err
		}
		shared = append(shared, pairs...)
		if len(shared) > MaxPairs {
			return first, shared[:MaxPairs], countersign.Errorf(countersign.TooLarge, "more than %d pairs of keys share a factor", MaxPairs)
		}
	}
	k.drop()
	return first, shared, nil
}

func checkModuli(moduli []*big.Int) error {
	for j, n := range moduli {
		if n == nil || n.Sign() <= 0 || n.BitLen() > maxBits {
			return countersign.Errorf(countersign.BadRequest, "modulus %d is not a positive number of at most %d bits", j, maxBits)
		}
	}
	return nil
}

// add adds at most one batch.
func (k *Known) add(ctx context.Context, moduli []*big.Int) (shared []Shared, err error) {
	next := &batch{first: k.next}
	var numbers []int // of next.moduli, of which one that occurs twice is only once
	seen := map[[sha256.Size]byte]int{}
	for i, n := range moduli {
		sum := sha256.Sum256(n.Bytes())
		at, again := k.by[sum]
		if !again {
			at, again = seen[sum]
		}
		if again {
			shared = append(shared, Shared{at, k.next + i, n})
			continue
		}
		seen[sum] = k.next + i
		next.moduli, numbers = append(next.moduli, n), append(numbers, k.next+i)
	}
	if len(next.moduli) > 0 {
		pairs, err := k.compare(ctx, next, numbers)
		if err != nil {
			return nil, err
		}
		shared = append(shared, pairs...)
	}
	if k.by == nil {
		k.by = map[[sha256.Size]byte]int{}
	}
	maps.Copy(k.by, seen)
	next.moduli = slices.Clone(moduli) // numbers are consecutive; one that is repeated shares what the first does
	k.keep(next)
	return shared, nil
}

// compare finds the pairs within a batch, and those with what is kept.
func (k *Known) compare(ctx context.Context, next *batch, numbers []int) (shared []Shared, err error) {
	tree := productTree(next.moduli)
	next.product = tree[len(tree)-1][0]
	within := make([]*big.Int, len(next.moduli))
	if len(next.moduli) > 1 {
		for i, rest := range remainders(tree, next.product, true) {
			n := next.moduli[i]
			within[i] = rest.GCD(nil, nil, rest.Quo(rest, n), n) // rest was the product modulo n²
		}
	}
	// The product of all that is kept, modulo that of the new ones.
	all := big.NewInt(1)
	for _, b := range k.batches {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		all.Mul(all, new(big.Int).Mod(b.product, next.product)).Mod(all, next.product)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	with := remainders(tree, all, false)
	var suspects []int
	for i, n := range next.moduli {
		if isCommon(with[i].GCD(nil, nil, with[i], n)) {
			if shared, err = k.partners(ctx, n, numbers[i], shared); err != nil {
				return nil, err
			}
		}
		if within[i] != nil && isCommon(within[i]) {
			suspects = append(suspects, i)
		}
	}
	pairs, err := pairsOf(ctx, next.moduli, suspects)
	for _, p := range pairs {
		shared = append(shared, Shared{numbers[p.I], numbers[p.J], p.Factor})
	}
	return shared, err
}

// isCommon reports whether a greatest common divisor is one. That of a modulus with a
// product that it divides is the modulus, and 0 means the same.
func isCommon(g *big.Int) bool { return g.Cmp(big.NewInt(1)) != 0 }

// partners appends the pairs of a new modulus with what is kept.
func (k *Known) partners(ctx context.Context, n *big.Int, number int, shared []Shared) ([]Shared, error) {
	rest := new(big.Int)
	for _, b := range k.batches {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if rest.Mod(b.product, n); !isCommon(rest.GCD(nil, nil, rest, n)) {
			continue
		}
		for i, m := range b.moduli {
			if g := new(big.Int).GCD(nil, nil, m, n); isCommon(g) {
				shared = append(shared, Shared{b.first + i, number, g})
			}
		}
		if len(shared) > MaxPairs {
			return shared, nil
		}
	}
	return shared, nil
}

// keep appends a batch, to the last one where both fit into one.
func (k *Known) keep(next *batch) {
	k.next += len(next.moduli)
	if next.product == nil { // nothing new in it
		next.product = big.NewInt(1)
	}
	if len(k.batches) > 0 {
		if last := k.batches[len(k.batches)-1]; len(last.moduli)+len(next.moduli) <= batchModuli {
			last.moduli = append(last.moduli, next.moduli...)
			last.product = new(big.Int).Mul(last.product, next.product)
			return
		}
	}
	k.batches = append(k.batches, next)
}

// drop removes the oldest batches beyond Max.
func (k *Known) drop() {
	most := k.Max
	if most <= 0 {
		most = MaxModuli
	}
	for len(k.batches) > 1 && k.Len()-len(k.batches[0].moduli) >= most {
		oldest := k.batches[0]
		for i, n := range oldest.moduli {
			if sum := sha256.Sum256(n.Bytes()); k.by[sum] == oldest.first+i {
				delete(k.by, sum)
			}
		}
		k.batches = k.batches[1:]
		k.first = k.batches[0].first
	}
}

// forget removes what was added from a number on.
func (k *Known) forget(from int) {
	for sum, number := range k.by {
		if number >= from {
			delete(k.by, sum)
		}
	}
	for len(k.batches) > 0 {
		last := k.batches[len(k.batches)-1]
		if last.first+len(last.moduli) <= from {
			break
		}
		if last.first >= from {
			k.batches = k.batches[:len(k.batches)-1]
			continue
		}
		last.moduli = last.moduli[:from-last.first]
		tree := productTree(last.moduli)
		last.product = tree[len(tree)-1][0]
	}
	k.next = from
}
