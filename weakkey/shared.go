package weakkey

import (
	"context"
	"math/big"
	"slices"

	"github.com/countersign-iot/countersign"
)

const (
	// batchModuli is how many moduli are multiplied into one product. With 2048
	// bits each a batch takes about 15 MiB, two of them at a time.
	batchModuli = 2048
	// MaxModuli is how many keys one run takes. Time grows with the square of
	// the number of batches.
	MaxModuli = 4 << 20
	// MaxPairs is how many pairs one run reports. A fleet with more has a
	// generator that is broken altogether, and needs no list of them all.
	MaxPairs = 10_000
)

// Shared is a pair of RSA moduli, by index, that share a factor greater than 1,
// so that both keys are broken. Where the moduli are equal it is the modulus: then the
// two have one key, which is another fault.
type Shared struct {
	I, J   int // I < J
	Factor *big.Int
}

// SharedFactors finds all pairs of moduli with a common factor, by Bernstein's
// product and remainder trees, in batches to bound the memory. A modulus that
// occurs more than once is reported with its first occurrence alone. Errors:
// code BadRequest for a modulus that is not positive or above 16384 bits,
// TooLarge for more than MaxModuli, or the context's; TooLarge also comes with the
// first MaxPairs pairs where there are more.
func SharedFactors(ctx context.Context, moduli []*big.Int) ([]Shared, error) {
	if len(moduli) > MaxModuli {
		return nil, countersign.Errorf(countersign.TooLarge, "more than %d moduli at once", MaxModuli)
	}
	shared, unique, err := equalModuli(moduli)
	if err != nil {
		return nil, err
	}
	// A modulus is suspect if it has a factor in common with the rest.
	var suspects []int
	one := big.NewInt(1)
	for from := 0; from < len(unique); from += batchModuli {
		batch := unique[from:min(from+batchModuli, len(unique))]
		common, err := commonFactors(ctx, moduli, unique, batch)
		if err != nil {
			return nil, err
		}
		for i, g := range common {
			if g.Cmp(one) != 0 {
				suspects = append(suspects, batch[i])
			}
		}
	}
	return pairs(ctx, moduli, suspects, shared)
}

// pairs tells which of the suspects go together.
func pairs(ctx context.Context, moduli []*big.Int, suspects []int, shared []Shared) ([]Shared, error) {
	for a, i := range suspects {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for _, j := range suspects[a+1:] {
			if g := new(big.Int).GCD(nil, nil, moduli[i], moduli[j]); g.Cmp(big.NewInt(1)) != 0 {
				shared = append(shared, Shared{i, j, g})
			}
		}
		if len(shared) > MaxPairs {
			return shared[:MaxPairs], countersign.Errorf(countersign.TooLarge, "more than %d pairs of keys share a factor", MaxPairs)
		}
	}
	return shared, nil
}

// equalModuli reports repeated moduli and gives the indices of first occurrences.
func equalModuli(moduli []*big.Int) (shared []Shared, unique []int, err error) {
	first := make(map[string]int, len(moduli))
	for j, n := range moduli {
		if n == nil || n.Sign() <= 0 || n.BitLen() > maxBits {
			return nil, nil, countersign.Errorf(countersign.BadRequest, "modulus %d is not a positive number of at most %d bits", j, maxBits)
		}
		key := string(n.Bytes())
		if i, seen := first[key]; seen {
			shared = append(shared, Shared{i, j, n})
			continue
		}
		first[key] = j
		unique = append(unique, j)
	}
	return shared, unique, nil
}

// commonFactors gives, for each modulus of the batch, the product of the factors
// that it has in common with others of all.
func commonFactors(ctx context.Context, moduli []*big.Int, all, batch []int) ([]*big.Int, error) {
	tree := productTree(pick(moduli, batch))
	common := make([]*big.Int, len(batch))
	for i := range common {
		common[i] = big.NewInt(1)
	}
	for from := 0; from < len(all); from += batchModuli {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		others := all[from:min(from+batchModuli, len(all))]
		same := others[0] == batch[0]
		product := tree[len(tree)-1][0]
		if !same {
			other := productTree(pick(moduli, others))
			product = other[len(other)-1][0]
		}
		for i, rest := range remainders(tree, product, same) {
			n := moduli[batch[i]]
			if same { // rest is product mod n²
				rest.Quo(rest, n)
			}
			g := rest.GCD(nil, nil, rest, n)
			common[i].Mul(common[i], g)
		}
	}
	return common, nil
}

func pick(moduli []*big.Int, indices []int) []*big.Int {
	picked := make([]*big.Int, len(indices))
	for i, at := range indices {
		picked[i] = moduli[at]
	}
	return picked
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

// remainders gives x modulo each leaf of the tree, or its square.
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
