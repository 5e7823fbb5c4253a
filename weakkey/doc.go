// Package weakkey recognizes public keys whose private key can be computed or is
// known. It does not decide which types and sizes are accepted: package ca does.
//
// What it finds in one key:
//
//   - RSA: an exponent that is even or 1, factors below 2^16, primes so close
//     that Fermat's method factors the modulus, the structure of CVE-2017-15361 (ROCA),
//     and moduli on a [Blocklist].
//   - ECDSA: points off their curve, and private keys so small that they were
//     never drawn at random.
//   - Ed25519: points of small order, encodings that are not canonical, and
//     encodings that are not a point.
//   - All: keys whose private half is published, in RFCs (the test keys of RFC 9500
//     among them) and in the tests of the Go project: published.txt.
//
// [Blocklist.Check] is the function with which every public key is checked that the
// authority accepts. [Known] compares each new RSA key with those that are known, and
// finds the pairs that share a prime.
//
// What it does not find: the keys of Debian's OpenSSL of 2006 to 2008
// (CVE-2008-0166) are not built in, because there is no list of them with a license
// in a Go package. [Blocklist.Read] reads the files of the openssl-blacklist package.
// Other faults of a generator, which show only in several keys or signatures, cannot
// be found.
package weakkey
