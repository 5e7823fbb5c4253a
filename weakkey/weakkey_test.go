package weakkey_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/weakkey"
)

func prime(t testing.TB, bits int) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func nextPrime(p *big.Int) *big.Int {
	q := new(big.Int).Add(p, big.NewInt(2))
	for !q.ProbablyPrime(10) {
		q.Add(q, big.NewInt(2))
	}
	return q
}

func rsaKey(p, q *big.Int) *rsa.PublicKey {
	return &rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}
}

// rocaFactor makes a prime as the faulty library did: k*M + (65537^a mod M).
func rocaFactor(t testing.TB, bits int) *big.Int {
	t.Helper()
	m := big.NewInt(1)
	for i := int64(2); i <= 701 && m.BitLen() < bits-60; i++ {
		if big.NewInt(i).ProbablyPrime(10) {
			m.Mul(m, big.NewInt(i))
		}
	}
	for {
		a, err := rand.Int(rand.Reader, m)
		if err != nil {
			t.Fatal(err)
		}
		k, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-m.BitLen())))
		if err != nil {
			t.Fatal(err)
		}
		p := new(big.Int).Exp(big.NewInt(65537), a, m)
		if p.Add(p, k.Mul(k, m)); p.ProbablyPrime(10) {
			return p
		}
	}
}

func small(t testing.TB, curve elliptic.Curve, d int64) *ecdsa.PublicKey {
	t.Helper()
	x, y := multiple(curve, d)
	return point(curve, x, y)
}

func multiple(curve elliptic.Curve, d int64) (x, y *big.Int) {
	return curve.ScalarBaseMult(big.NewInt(d).Bytes()) //nolint:staticcheck // the new ways make no weak keys
}

func point(curve elliptic.Curve, x, y *big.Int) *ecdsa.PublicKey {
	return &ecdsa.PublicKey{Curve: curve, X: x, Y: y} //nolint:staticcheck // the new ways make no weak keys
}

func ed(t testing.TB, littleEndian string) ed25519.PublicKey {
	t.Helper()
	k, err := hex.DecodeString(littleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestCheckRefusesWeakKeys(t *testing.T) {
	p, q := prime(t, 1024), prime(t, 1024)
	x, y := multiple(elliptic.P256(), 3)
	negative := point(elliptic.P256(), x, new(big.Int).Sub(elliptic.P256().Params().P, y))
	off := point(elliptic.P256(), x, new(big.Int).Add(y, big.NewInt(1)))
	far := p
	for range 3 {
		far = nextPrime(far)
	}
	for _, tt := range []struct {
		name string
		key  crypto.PublicKey
		says string
	}{
		{"exponent 1", &rsa.PublicKey{N: rsaKey(p, q).N, E: 1}, "exponent"},
		{"even exponent", &rsa.PublicKey{N: rsaKey(p, q).N, E: 65536}, "exponent"},
		{"no modulus", &rsa.PublicKey{E: 65537}, "modulus"},
		{"even modulus", rsaKey(p, big.NewInt(2)), "small factor"},
		{"factor 3", rsaKey(p, big.NewInt(3)), "small factor"},
		{"factor 8191", rsaKey(p, big.NewInt(8191)), "small factor"},
		{"factor 8209", rsaKey(p, big.NewInt(8209)), "small factor"},
		{"factor 65521", rsaKey(p, big.NewInt(65521)), "small factor"},
		{"square", rsaKey(p, p), "so close"},
		{"next prime", rsaKey(p, nextPrime(p)), "so close"},
		{"prime after a few", rsaKey(p, far), "so close"},
		{"ROCA 2048", rsaKey(rocaFactor(t, 1024), rocaFactor(t, 1024)), "ROCA"},
		{"no curve", &ecdsa.PublicKey{}, "missing"},
		{"P-224", small(t, elliptic.P224(), 1000), "curve"},
		{"off the curve", off, "not on the curve"},
		{"infinity", point(elliptic.P256(), new(big.Int), new(big.Int)), "not on the curve"},
		{"private key 1", small(t, elliptic.P256(), 1), "tiny"},
		{"private key 256 on P-384", small(t, elliptic.P384(), 256), "tiny"},
		{"private key 2 on P-521", small(t, elliptic.P521(), 2), "tiny"},
		{"private key -3", negative, "tiny"},
		{"short Ed25519", ed25519.PublicKey{1}, "length"},
		{"order 1", ed(t, "0100000000000000000000000000000000000000000000000000000000000000"), "small order"},
		{"order 2", ed(t, "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), "small order"},
		{"order 4", ed(t, "0000000000000000000000000000000000000000000000000000000000000000"), "small order"},
		{"order 4, other sign", ed(t, "0000000000000000000000000000000000000000000000000000000000000080"), "small order"},
		{"order 8", ed(t, "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "small order"},
		{"order 8, other sign", ed(t, "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"), "small order"},
		{"order 8, second", ed(t, "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "small order"},
		{"order 8, second, other sign", ed(t, "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"), "small order"},
		{"order 4 above p", ed(t, "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), "canonical"},
		{"order 1 above p", ed(t, "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), "canonical"},
		{"no point", ed(t, "0200000000000000000000000000000000000000000000000000000000000000"), "not a point"},
	} {
		err := weakkey.Check(tt.key)
		if countersign.CodeOf(err) != countersign.WeakKey || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want a weak key and why: %q", tt.name, err, tt.says)
		}
	}
}

func TestCheckPassesSoundKeys(t *testing.T) {
	for range 20 {
		edKey, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys := []crypto.PublicKey{edKey, rsaKey(prime(t, 512), prime(t, 512))}
		for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
			k, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, &k.PublicKey)
		}
		for _, k := range keys {
			if err := weakkey.Check(k); err != nil {
				t.Errorf("Check(%T): got %v, want nil", k, err)
			}
		}
	}
}

// sharedFactors compares the moduli with each other.
func sharedFactors(ctx context.Context, moduli []*big.Int) ([]weakkey.Shared, error) {
	_, shared, err := new(weakkey.Known).Add(ctx, moduli)
	return shared, err
}

func TestSharedFactorsFindsEachPair(t *testing.T) {
	const count = 2100 // more than one batch
	moduli := make([]*big.Int, count)
	for i := range moduli {
		moduli[i] = new(big.Int).Mul(prime(t, 64), prime(t, 64))
	}
	p, q, r := prime(t, 96), prime(t, 96), prime(t, 96)
	moduli[3] = new(big.Int).Mul(p, prime(t, 64))
	moduli[9] = new(big.Int).Mul(p, q)
	moduli[2050] = new(big.Int).Mul(q, prime(t, 64)) // in another batch
	moduli[2060] = new(big.Int).Mul(r, prime(t, 64))
	moduli[2061] = new(big.Int).Mul(r, prime(t, 64))
	moduli[100] = new(big.Int).Set(moduli[7]) // the same key twice
	got, err := sharedFactors(t.Context(), moduli)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, s := range got {
		lines = append(lines, fmt.Sprint(s.I, s.J, s.Factor))
	}
	slices.Sort(lines)
	want := []string{
		fmt.Sprint(3, 9, p), fmt.Sprint(9, 2050, q), fmt.Sprint(2060, 2061, r), fmt.Sprint(7, 100, moduli[7]),
	}
	slices.Sort(want)
	if !slices.Equal(lines, want) {
		t.Errorf("SharedFactors: got %q, want %q", lines, want)
	}
}

func TestSharedFactorsKeepsItsBounds(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sharedFactors(canceled, []*big.Int{big.NewInt(15), big.NewInt(21)}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v, want %v", err, context.Canceled)
	}
	for _, bad := range [][]*big.Int{{nil}, {big.NewInt(0)}, {big.NewInt(-15)}, {new(big.Int).Lsh(big.NewInt(1), 20000)}} {
		if _, err := sharedFactors(t.Context(), bad); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("modulus %v: got %v, want bad_request", bad, err)
		}
	}
	for _, none := range [][]*big.Int{nil, {big.NewInt(15)}, {big.NewInt(15), big.NewInt(77), big.NewInt(221)}} {
		if got, err := sharedFactors(t.Context(), none); err != nil || len(got) != 0 {
			t.Errorf("%v: got %v, %v, want none", none, got, err)
		}
	}
}

func TestSharedFactorsStopsAtTooManyPairs(t *testing.T) {
	p := prime(t, 64)
	moduli := make([]*big.Int, 200)
	for i := range moduli {
		moduli[i] = new(big.Int).Mul(p, prime(t, 64))
	}
	got, err := sharedFactors(t.Context(), moduli)
	if countersign.CodeOf(err) != countersign.TooLarge || len(got) != weakkey.MaxPairs {
		t.Errorf("200 keys of one prime: got %d pairs and %v, want %d and too_large", len(got), err, weakkey.MaxPairs)
	}
}

func TestBlocklistKnowsDebiansForm(t *testing.T) {
	key := rsaKey(prime(t, 512), prime(t, 512))
	sum := sha1.Sum([]byte("Modulus=" + strings.ToUpper(key.N.Text(16)) + "\n"))
	var list weakkey.Blocklist
	if err := list.Check(key); err != nil {
		t.Errorf("empty list: got %v, want nil", err)
	}
	if err := list.Read(strings.NewReader("# le32\n\n" + hex.EncodeToString(sum[:])[20:] + "\n")); err != nil {
		t.Fatal(err)
	}
	if err := list.Check(key); countersign.CodeOf(err) != countersign.WeakKey {
		t.Errorf("key on the list: got %v, want weak_key", err)
	}
	if err := list.Check(rsaKey(prime(t, 512), prime(t, 512))); err != nil || list.Len() != 1 {
		t.Errorf("key not on the list: got %v with %d keys, want nil with 1", err, list.Len())
	}
	for _, bad := range []string{"00", strings.Repeat("zz", 10), strings.Repeat("00", 20)} {
		if err := list.Read(strings.NewReader(bad)); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("line %q: got %v, want bad_request", bad, err)
		}
	}
	if err := list.Read(strings.NewReader(strings.Repeat("#", 5000))); err == nil {
		t.Error("line of 5000 characters: got nil, want an error")
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(make([]byte, 32), 65537)
	f.Add([]byte{0x26, 0xe8}, 3)
	f.Fuzz(func(t *testing.T, b []byte, e int) {
		n := new(big.Int).SetBytes(b)
		half := len(b) / 2
		for _, k := range []crypto.PublicKey{
			&rsa.PublicKey{N: n, E: e}, ed25519.PublicKey(b),
			point(elliptic.P256(), new(big.Int).SetBytes(b[:half]), new(big.Int).SetBytes(b[half:])),
		} {
			if code := countersign.CodeOf(weakkey.Check(k)); code != "" && code != countersign.WeakKey {
				t.Errorf("Check(%T): got code %q", k, code)
			}
		}
	})
}

func BenchmarkCheckRSA2048(b *testing.B) {
	key := rsaKey(prime(b, 1024), prime(b, 1024))
	for b.Loop() {
		if err := weakkey.Check(key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckP256(b *testing.B) {
	key := small(b, elliptic.P256(), 12345)
	for b.Loop() {
		if err := weakkey.Check(key); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSharedFactors is one full batch of 2048-bit numbers without small factors.
func BenchmarkSharedFactors(b *testing.B) {
	var moduli []*big.Int
	for raw := make([]byte, 256); len(moduli) < 2048; {
		if _, err := rand.Read(raw); err != nil {
			b.Fatal(err)
		}
		raw[0] |= 0x80
		if n := new(big.Int).SetBytes(raw); weakkey.Check(&rsa.PublicKey{N: n, E: 65537}) == nil {
			moduli = append(moduli, n)
		}
	}
	for b.Loop() {
		if _, err := sharedFactors(b.Context(), moduli); err != nil {
			b.Fatal(err)
		}
	}
}
