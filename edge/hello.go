package edge

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"slices"
)

const (
	// maxListed bounds what is read of each list of a ClientHello. The longest that
	// clients send have some 140 entries; one record could carry 8,000.
	maxListed = 256
	// maxCount is what two digits show.
	maxCount = 99
	// digest is how many bytes of each SHA-256 are shown.
	digest = 6
)

// TLS extensions that the fingerprint treats by name.
const (
	extServerName   = 0
	extALPN         = 16
	extPadding      = 21
	extPreSharedKey = 41
	extEarlyData    = 42
	extCookie       = 44
)

// transient are extensions that the same client sends or omits: padding depends
// on the length of the name, the others on whether it resumes a session.
var transient = []uint16{extPadding, extPreSharedKey, extEarlyData, extCookie}

// Fingerprint distinguishes TLS client programs by their ClientHello: the same library
// with the same settings has the same fingerprint in each connection, whichever
// certificate it presents and whether or not it resumes a session. It proves nothing,
// since a ClientHello can be imitated.
//
// The form is that of JA4: t13d1516h2_8daaf6152771_e5627efa2ab1 has the
// protocol (t: TLS over TCP), the highest version, d for a server's name or i for none, the
// numbers of cipher suites and of extensions, the first and last character of the first ALPN
// name (00: none), a truncated SHA-256 of the sorted cipher suites, and one of the sorted
// extensions and the signature algorithms in their order. docs/edge.md lists the
// differences from JA4.
func Fingerprint(hello *tls.ClientHelloInfo) string {
	var kept [3][maxListed]uint16
	ciphers := listed(kept[0][:0], hello.CipherSuites, nil)
	extensions := listed(kept[1][:0], hello.Extensions, transient)
	schemes := kept[2][:0]
	for _, s := range hello.SignatureSchemes[:min(len(hello.SignatureSchemes), maxListed)] {
		if !grease(uint16(s)) {
			schemes = append(schemes, uint16(s))
		}
	}
	out := make([]byte, 0, 36)
	out = append(out, 't')
	out = append(out, version(hello.SupportedVersions)...)
	if slices.Contains(extensions, extServerName) {
		out = append(out, 'd')
	} else {
		out = append(out, 'i')
	}
	out = twoDigits(out, len(ciphers))
	out = twoDigits(out, len(extensions))
	out = append(out, alpn(hello.SupportedProtos)...)

	slices.Sort(ciphers)
	out = hashed(append(out, '_'), ciphers, nil)
	extensions = slices.DeleteFunc(extensions, func(e uint16) bool { return e == extServerName || e == extALPN })
	slices.Sort(extensions)
	return string(hashed(append(out, '_'), extensions, schemes))
}

// listed appends the values that are neither GREASE nor in without.
func listed(into, values, without []uint16) []uint16 {
	for _, v := range values[:min(len(values), maxListed)] {
		if !grease(v) && !slices.Contains(without, v) {
			into = append(into, v)
		}
	}
	return into
}

// grease reports whether v is a value that clients add to keep servers tolerant: 0x0A0A,
// 0x1A1A, … 0xFAFA (RFC 8701, 2).
func grease(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

func version(offered []uint16) string {
	var highest uint16
	for _, v := range offered {
		if !grease(v) {
			highest = max(highest, v)
		}
	}
	switch highest {
	case tls.VersionTLS13:
		return "13"
	case tls.VersionTLS12:
		return "12"
	case tls.VersionTLS11:
		return "11"
	case tls.VersionTLS10:
		return "10"
	}
	return "00"
}

func twoDigits(into []byte, n int) []byte {
	const digits = "0123456789"
	n = min(n, maxCount)
	return append(into, digits[n/10], digits[n%10])
}

// alpn returns the first and last character of the first name, or of its hex form
// where those are not ASCII letters or digits.
func alpn(names []string) string {
	if len(names) == 0 || names[0] == "" {
		return "00"
	}
	first, last := names[0][0], names[0][len(names[0])-1]
	if !alphanumeric(first) || !alphanumeric(last) {
		first, last = hex.EncodeToString([]byte{first})[0], hex.EncodeToString([]byte{last})[1]
	}
	return string([]byte{first, last})
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// hashed appends the truncated SHA-256 of the lists as comma-separated hex, joined
// by an underscore; zeros if values is empty.
func hashed(into []byte, values, more []uint16) []byte {
	if len(values) == 0 {
		return append(into, bytes.Repeat([]byte{'0'}, 2*digest)...)
	}
	var room [2 * maxListed * len("0000,")]byte
	text := commas(room[:0], values)
	if len(more) > 0 {
		text = commas(append(text, '_'), more)
	}
	sum := sha256.Sum256(text)
	return hex.AppendEncode(into, sum[:digest])
}

func commas(into []byte, values []uint16) []byte {
	var two [2]byte
	for i, v := range values {
		if i > 0 {
			into = append(into, ',')
		}
		binary.BigEndian.PutUint16(two[:], v)
		into = hex.AppendEncode(into, two[:])
	}
	return into
}
