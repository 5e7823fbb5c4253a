// Package weakkey recognizes public keys whose private half can be found out. It
// says nothing of which types and sizes are welcome: package ca does.
//
// What it knows, of one key:
//
//   - RSA: an exponent that is even or 1, factors below 2^16, primes so close
//     that Fermat's method parts them, the structure of CVE-2017-15361 (ROCA),
//     and moduli on a [Blocklist].
//   - ECDSA: points off their curve, and private keys so small that they were
//     never drawn at random.
//   - Ed25519: points of small order, encodings that are not canonical, and
//     encodings that are no point.
//   - All: keys whose private half is published, in RFCs (the test keys of RFC 9500
//     among them) and in the tests of the Go project: published.txt.
//
// [Blocklist.Check] is the one function through which every public key goes that
// enters the authority. Of many RSA keys, [SharedFactors] finds those that share a
// prime, and [Known] compares each new one with those that are known.
//
// What it does not know: the keys of Debian's OpenSSL of 2006 to 2008
// (CVE-2008-0166) are not built in, since no list of them comes with a license
// and a package to take it from. [Blocklist.Read] reads the files of the
// openssl-blacklist package, for those who have them. Keys with other faults of
// their generator, that show only in several keys or signatures, cannot be seen.
package weakkey
