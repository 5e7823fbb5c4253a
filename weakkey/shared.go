package weakkey

import (
	"context"
	"math/big"
	"slices"
)

const (
	// batchModuli is how many moduli are multiplied into one product. With 2048
	// bits each a batch takes about 15 MiB while it is compared, and a megabyte after.
	batchModuli = 2048
	// MaxModuli is how many keys a Known without Max keeps. Time grows with the square of the number
	// of batches.
	MaxModuli = 4 << 20
	// MaxPairs is how many pairs are reported at once. A fleet with more has a
	// broken generator, and a complete list does not help.
	MaxPairs = 10_000
)

// Shared is a pair of RSA moduli, by number, that share a factor greater than 1, so
// that both keys are broken. If the moduli are equal the factor is the modulus: then
// the two have the same key, which is another fault.
type Shared struct {
	I, J   int // I < J
	Factor *big.Int
}

// pairsOf returns which of the suspects share a factor.
func pairsOf(ctx context.Context, moduli []*big.Int, suspects []int) (shared []Shared, err error) {
	for a, i := range suspects {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for _, j := range suspects[a+1:] {
			if g := new(big.Int).GCD(nil, nil, moduli[i], moduli[j]); isCommon(g) {
				shared = append(shared, Shared{i, j, g})
			}
		}
		if len(shared) > MaxPairs {
			return shared, nil
		}
	}
	return shared, nil
}

// productTree has the numbers at level 0 and their product alone on the last one.
func productTree(level []*big.Int) [][]*big.Int {
	tree := [][]*big.Int{level}
	for len(level) > 1 {
		next := make([]*big.Int, 0, (len(level)+1)/2)
		for i := 0; i+1 < len(level); i += 2 {
			next = append(next, new(big.Int).Mul(level[i], level[i+1]))
		}
		if len(level)%2 == 1 {
			next = append(next, level[len(level)-1])
		}
		tree = append(tree, next)
		level = next
	}
	return tree
}

// remainders returns x modulo each leaf of the tree, or its square.
func remainders(tree [][]*big.Int, x *big.Int, squared bool) []*big.Int {
	rest := []*big.Int{x}
	square := new(big.Int)
	for _, level := range slices.Backward(tree) {
		next := make([]*big.Int, len(level))
		for j, n := range level {
			if squared {
				n = square.Mul(n, n)
			}
			next[j] = new(big.Int).Mod(rest[min(j/2, len(rest)-1)], n)
		}
		rest = next
	}
	return rest
}
