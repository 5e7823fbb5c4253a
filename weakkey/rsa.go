package weakkey

import (
	"crypto/rsa"
	"math/big"
	"sync"
)

const (
	// maxBits bounds what one check costs.
	maxBits = 16384
	// smallPrimes is the bound of trial division: 6,542 primes, whose product costs
	// a division of 94,000 bits.
	smallPrimes = 1 << 16
	// fermatSteps is how many candidates for (p+q)/2 are tried. Generators that
	// take the next prime after p for q are found with the first; a hundred is what other
	// programs try, and costs little.
	fermatSteps = 100
)

const roca = "it was made by an Infineon library with a known fault (ROCA, CVE-2017-15361)"

func checkRSA(k *rsa.PublicKey) string {
	switch {
	case k.N == nil || k.N.Sign() <= 0 || k.N.BitLen() > maxBits:
		return "its RSA modulus is not a positive number of at most 16384 bits"
	case k.E < 3 || k.E%2 == 0:
		return "its RSA exponent is even or less than 3"
	case hasSmallFactor(k.N):
		return "its RSA modulus has a small factor"
	case isROCA(k.N):
		return roca
	case hasClosePrimes(k.N):
		return "the primes of its RSA modulus are so close that it can be factored"
	}
	return ""
}

// primorial is the product of all primes below smallPrimes.
var primorial = sync.OnceValue(func() *big.Int {
	product := big.NewInt(1)
	for _, p := range primesBelow(smallPrimes) {
		product.Mul(product, big.NewInt(int64(p)))
	}
	return product
})

func primesBelow(n int) []int {
	composite := make([]bool, n)
	var primes []int
	for i := 2; i < n; i++ {
		if composite[i] {
			continue
		}
		primes = append(primes, i)
		for j := i * i; j < n; j += i {
			composite[j] = true
		}
	}
	return primes
}

func hasSmallFactor(n *big.Int) bool {
	if n.Bit(0) == 0 {
		return true
	}
	rest := new(big.Int).Mod(primorial(), n)
	return rest.GCD(nil, nil, rest, n).Cmp(big.NewInt(1)) != 0
}

// rocaPrime is a prime with the residues that a faulty modulus can leave.
type rocaPrime struct {
	p    uint64
	seen []bool
}

// rocaPrimes are the primes of the smallest primorial M that the faulty library
// used (for keys of up to 960 bits; larger ones use multiples of it). Its primes
// are k*M + 65537^a mod M, so the modulus is a power of 65537 modulo each
// (Nemec et al., "The Return of Coppersmith's Attack", 2017).
var rocaPrimes = sync.OnceValue(func() []rocaPrime {
	var all []rocaPrime
	for _, p := range primesBelow(168)[1:] {
		r := rocaPrime{uint64(p), make([]bool, p)}
		for x := uint64(1); !r.seen[x]; x = x * 65537 % r.p {
			r.seen[x] = true
		}
		all = append(all, r)
	}
	return all
})

// isROCA reports whether n has the fingerprint. A sound modulus has it by chance
// once in about 2^27 keys.
func isROCA(n *big.Int) bool {
	rest, p := new(big.Int), new(big.Int)
	for _, r := range rocaPrimes() {
		if !r.seen[rest.Mod(n, p.SetUint64(r.p)).Uint64()] {
			return false
		}
	}
	return true
}

// hasClosePrimes applies Fermat's method: n = a² - b² for an a a little above the root of n.
func hasClosePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	square := new(big.Int).Mul(a, a)
	if square.Cmp(n) == 0 {
		return true
	}
	a.Add(a, big.NewInt(1))
	rest := new(big.Int).Mul(a, a)
	rest.Sub(rest, n)
	step := new(big.Int).Lsh(a, 1)
	step.Add(step, big.NewInt(1))
	for range fermatSteps {
		if isSquare(rest) {
			return true
		}
		rest.Add(rest, step) // (a+1)² = a² + 2a + 1
		step.Add(step, big.NewInt(2))
	}
	return false
}

// isSquare rules out most numbers by their residues, because a root is expensive.
func isSquare(n *big.Int) bool {
	if n.Sign() < 0 {
		return false
	}
	const residues64 = 0x0202021202030213 // bit i: i is a square modulo 64
	root := new(big.Int)
	if residues64>>root.And(n, big.NewInt(63)).Uint64()&1 == 0 {
		return false
	}
	rest := root.Mod(n, big.NewInt(3*5*7*11*13)).Uint64()
	for _, m := range []struct{ p, squares uint64 }{{3, 0b11}, {5, 0b10011}, {7, 0b10111}, {11, 0b1000111011}, {13, 0b1011000011011}} {
		if m.squares>>(rest%m.p)&1 == 0 {
			return false
		}
	}
	root.Sqrt(n)
	return root.Mul(root, root).Cmp(n) == 0
}
