package cms

import (
	"crypto"
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// wrapIV is the default initial value of RFC 3394, 2.2.3.1.
const wrapIV = 0xa6a6a6a6a6a6a6a6

var errUnwrap = errors.New("it cannot be opened with the key")

// wrapKey encrypts key with kek by AES Key Wrap (RFC 3394, 2.2.1). key is a
// multiple of 8 octets, at least 16.
func wrapKey(kek, key []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	n := len(key) / 8
	if n < 2 || len(key)%8 != 0 {
		return nil, errors.New("the key to wrap has an odd length")
	}
	out := make([]byte, 8+len(key))
	copy(out[8:], key)
	var b [aes.BlockSize]byte
	binary.BigEndian.PutUint64(b[:], wrapIV)
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(b[8:], out[8*i:])
			block.Encrypt(b[:], b[:])
			copy(out[8*i:8*i+8], b[8:])
			binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(n*j+i))
		}
	}
	copy(out, b[:8])
	clear(b[:])
	return out, nil
}

// unwrapKey is the inverse (RFC 3394, 2.2.2).
func unwrapKey(kek, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	n := len(wrapped)/8 - 1
	if n < 2 || len(wrapped)%8 != 0 {
		return nil, errUnwrap
	}
	key := make([]byte, 8*n)
	copy(key, wrapped[8:])
	var b [aes.BlockSize]byte
	copy(b[:8], wrapped)
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(n*j+i)) //nolint:gosec // G115: as above
			copy(b[8:], key[8*(i-1):])
			block.Decrypt(b[:], b[:])
			copy(key[8*(i-1):8*i], b[8:])
		}
	}
	var iv [8]byte
	binary.BigEndian.PutUint64(iv[:], wrapIV)
	if subtle.ConstantTimeCompare(b[:8], iv[:]) != 1 {
		clear(key)
		return nil, errUnwrap
	}
	return key, nil
}

// deriveKEK makes a key-encryption key from the shared secret z by the KDF of
// ANSI X9.63 with ECC-CMS-SharedInfo (RFC 5753, 7.2). wrap is the
// AlgorithmIdentifier of the key wrap in DER, ukm nil if the message has none.
func deriveKEK(h crypto.Hash, z, wrap, ukm []byte, size int) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(info *cryptobyte.Builder) {
		info.AddBytes(wrap)
		if ukm != nil {
			info.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(ukm) })
		}
		info.AddASN1(tagExplicit2, func(b *cryptobyte.Builder) {
			b.AddASN1OctetString(binary.BigEndian.AppendUint32(nil, uint32(size)*8)) //nolint:gosec // G115: 16 to 32 octets
		})
	})
	shared, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	if size > h.Size() { // the counter never goes beyond 1
		return nil, errors.New("the hash is too short for the key wrap")
	}
	d := h.New()
	d.Write(z)
	d.Write([]byte{0, 0, 0, 1})
	d.Write(shared)
	return d.Sum(nil)[:size], nil
}
