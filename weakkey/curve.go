package weakkey

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"math/big"
	"slices"
	"sync"
)

// smallScalars bounds the private keys that are tried: 1 and 2 come from a zeroed
// buffer or a counter, and the others are never drawn at random.
const smallScalars = 256

func checkECDSA(k *ecdsa.PublicKey) string {
	if k.Curve == nil || k.X == nil || k.Y == nil { //nolint:staticcheck // read, not changed
		return "its point is missing"
	}
	if !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, k.Curve) {
		return "its curve is weak or unknown"
	}
	encoded, err := k.Bytes()
	if err != nil {
		return "its point is not on the curve"
	}
	// -d and d have points with the same abscissa: one look-up finds both.
	x := encoded[1 : 1+(len(encoded)-1)/2]
	for _, small := range smallPoints()[k.Curve.Params().Name] {
		if bytes.Equal(small, x) {
			return "its private key is a tiny number"
		}
	}
	return ""
}

// smallPoints returns, for each curve, the abscissas of the points of the smallest private keys.
var smallPoints = sync.OnceValue(func() map[string][][]byte {
	points := map[string][][]byte{}
	for name, c := range map[string]struct {
		curve  ecdh.Curve
		octets int
	}{"P-256": {ecdh.P256(), 32}, "P-384": {ecdh.P384(), 48}, "P-521": {ecdh.P521(), 66}} {
		for d := int64(1); d <= smallScalars; d++ {
			key, err := c.curve.NewPrivateKey(big.NewInt(d).FillBytes(make([]byte, c.octets)))
			if err != nil {
				continue // all of 1 to smallScalars are below the curves' orders
			}
			point := key.PublicKey().Bytes()
			points[name] = append(points[name], point[1:1+c.octets])
		}
	}
	return points
})

// ed25519Prime is 2^255 - 19.
func ed25519Prime() *big.Int {
	p := new(big.Int).Lsh(big.NewInt(1), 255)
	return p.Sub(p, big.NewInt(19))
}

// smallOrder holds the ordinates of the eight points of order 1, 2, 4 and 8:
// two of them for order 8, besides 0, 1 and p-1.
var smallOrder = sync.OnceValue(func() []*big.Int {
	p := ed25519Prime()
	d := new(big.Int).ModInverse(big.NewInt(121666), p)
	d.Mul(d, big.NewInt(-121665)).Mod(d, p)
	// A point of order 8 doubles to one with y = 0, so x² = -y², and the curve's
	// equation -x² + y² = 1 + d x² y² becomes d y⁴ + 2 y² - 1 = 0.
	root := new(big.Int).Add(d, big.NewInt(1))
	root.ModSqrt(root, p)
	inverse := new(big.Int).ModInverse(d, p)
	all := []*big.Int{new(big.Int), big.NewInt(1), new(big.Int).Sub(p, big.NewInt(1))}
	for _, sign := range []int64{1, -1} {
		y := new(big.Int).Mul(root, big.NewInt(sign))
		y.Sub(y, big.NewInt(1)).Mul(y, inverse).Mod(y, p)
		if y = y.ModSqrt(y, p); y != nil {
			all = append(all, y, new(big.Int).Sub(p, y))
		}
	}
	return all
})

func checkEd25519(k ed25519.PublicKey) string {
	if len(k) != ed25519.PublicKeySize {
		return "its length is wrong"
	}
	b := slices.Clone(k)
	slices.Reverse(b)
	b[0] &= 0x7f // the sign of x
	y, p := new(big.Int).SetBytes(b), ed25519Prime()
	if y.Cmp(p) >= 0 {
		return "its point is not encoded canonically"
	}
	for _, small := range smallOrder() {
		if y.Cmp(small) == 0 {
			return "its point is of small order"
		}
	}
	// x² = (y²-1) / (d y²+1), with d = -121665/121666, must be a square.
	square := new(big.Int).Mul(y, y)
	top := new(big.Int).Sub(square, big.NewInt(1))
	top.Mul(top, big.NewInt(121666))
	bottom := new(big.Int).Mul(square, big.NewInt(-121665))
	bottom.Add(bottom, big.NewInt(121666))
	if big.Jacobi(top.Mul(top, bottom).Mod(top, p), p) != 1 {
		return "it is not a point of the curve"
	}
	return ""
}
