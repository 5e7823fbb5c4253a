package pkcs10test

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/countersign-iot/countersign"
)

func pemText(label string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}

const requestLabel = "CERTIFICATE REQUEST"

// utf16Text encodes text with a byte order mark, low or high octets first.
func utf16Text(text string, littleEndian bool) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune("\ufeff" + text)) {
		if littleEndian {
			out = binary.LittleEndian.AppendUint16(out, u)
		} else {
			out = binary.BigEndian.AppendUint16(out, u)
		}
	}
	return out
}

// texts tries what people, shells and modems make of a request.
func (m *maker) texts() {
	pem := func() string { return pemText(requestLabel, m.build(nil)) }
	b64 := func() string { return base64.StdEncoding.EncodeToString(m.build(nil)) }
	good := func(name, text string) { m.good(name, []byte(text)) }

	m.good("DER", m.build(nil))
	good("PEM", pem())
	good("PEM, CRLF", strings.ReplaceAll(pem(), "\n", "\r\n"))
	good("PEM, CR alone", strings.ReplaceAll(pem(), "\n", "\r"))
	good("PEM, indented", "csr: |\n    "+strings.ReplaceAll(pem(), "\n", "\n    "))
	good("PEM, tabs and blank lines", strings.ReplaceAll(pem(), "\n", "\t\n\n"))
	good("PEM without any line end", strings.ReplaceAll(pem(), "\n", ""))
	good("PEM with line ends written as backslash n", strings.ReplaceAll(pem(), "\n", `\n`))
	good("PEM in quotation marks", `"`+strings.ReplaceAll(pem(), "\n", `\r\n`)+`"`)
	good("NEW CERTIFICATE REQUEST", pemText("NEW "+requestLabel, m.build(nil)))
	good("CERTIFICATE SIGNING REQUEST", pemText("CERTIFICATE SIGNING REQUEST", m.build(nil)))
	good("PEM with two labels", strings.Replace(pemText("NEW "+requestLabel, m.build(nil)), "END NEW ", "END ", 1))
	good("PEM in lower case", strings.ReplaceAll(pem(), requestLabel, strings.ToLower(requestLabel)))
	good("PEM without END", strings.Split(pem(), "-----END")[0])
	good("PEM with headers", strings.Replace(pem(), "\n", "\nComment: made by hand\nVersion: 1\n\n", 1))
	good("PEM with headers, CR alone", strings.ReplaceAll(strings.Replace(pem(), "\n", "\nComment: made by hand\n\n", 1), "\n", "\r"))
	good("PEM after text", "Certificate Request:\n    Data:\n        Version: 1 (0x0)\n        Subject: CN = pump-7\n"+pem())
	good("PEM before text", pem()+"\nsent by pump-7\n")
	good("PEM after a certificate", pemText("CERTIFICATE", []byte{0x30, 0})+pem())
	good("PEM after EC parameters and key", pemText("EC PARAMETERS", []byte{6, 0})+pemText("EC PRIVATE KEY", []byte{0x30, 0})+pem())
	good("PEM before an encrypted key", pem()+pemText("ENCRYPTED PRIVATE KEY", []byte{0x30, 0}))
	good("PEM and zero octets", pem()+"\x00\x00\x00")
	good("PEM and the end of a file in DOS", pem()+"\x1a")
	m.good("PEM in UTF-16, low octets first", utf16Text(pem(), true))
	m.good("PEM in UTF-16, high octets first", utf16Text(pem(), false))
	m.good("PEM in UTF-16 without mark", utf16Text(pem(), true)[2:])
	good("base64 with a mark in the middle", "\ufeff"+b64()+"\ufeff")
	good("base64 of PEM", base64.StdEncoding.EncodeToString([]byte(pem())))
	good("base64url", base64.URLEncoding.EncodeToString(m.build(nil)))
	good("base64url without padding", base64.RawURLEncoding.EncodeToString(m.build(nil)))
	good("base64, CR alone", strings.Join(lines(b64(), 76), "\r"))
	good("base64 with blanks that do not break", strings.Join(lines(b64(), 60), "\u00a0\u200b"))
	good("base64 padded too far", strings.TrimRight(b64(), "=")+"====")
	m.wrongTexts(pem, b64)
}

// wrongTexts tries texts that hold no request, or not one.
func (m *maker) wrongTexts(pem, b64 func() string) {
	one := pem()
	text := func(name, body, reason string) { m.malformed(name, []byte(body), reason) }
	text("two requests", one+pem(), "more than one certification request")
	text("nothing", "", "there is no certification request")
	text("white space", " \r\n\t", "there is no certification request")
	text("PEM of nothing", pemText(requestLabel, nil), "base64 is empty")
	text("a character that is lost", strings.Replace(one, "MI", "M\u2026I", 1), "line 2, column 2")
	text("PEM with a broken first line", strings.Replace(one, "-----BEGIN", "----BEGIN", 1), "broken first line")
	text("PEM with a label that does not end", strings.Replace(one, "REQUEST-----\n", "REQUEST\n", 1), "PEM label")
	text("URL-encoded", strings.ReplaceAll(one[:80], " ", "%20")+"%0A", "line 1, column 11 has")
	text("base64 cut off", base64.RawStdEncoding.EncodeToString(m.build(nil))[:101], "101 characters, which no base64 has")
	text("base64 of two files", base64.StdEncoding.EncodeToString([]byte("ab"))+b64(), "continues after its padding")
	text("base64 with % in it", "MIHM%2B", "line 1, column 5")
	text("hexadecimal", hex.EncodeToString(m.build(nil)), "hexadecimal")
	text("JSON", `{"csr":`, "JSON")
	text("SPKAC", "SPKAC="+b64(), "SPKAC")
	text("prose", "hello, world", "line 1, column 6")
	m.malformed("noise", []byte{0xde, 0xad, 0xbe, 0xef, 0x80}, "neither PEM nor base64 nor DER")
	m.bad("over the size limit", append([]byte{0x30, 0x83, 1, 0, 1}, make([]byte, 1<<16)...), countersign.TooLarge, "over 65536 octets")
}

func lines(text string, width int) (out []string) {
	for c := range slices.Chunk([]byte(text), width) {
		out = append(out, string(c))
	}
	return out
}

// otherThings tries what is sent instead of a request.
func (m *maker) otherThings() {
	key := ecKey(m.t, elliptic.P256())
	name, when := named("pump-7"), seq(der(0x17, []byte("260101000000Z")), der(0x17, []byte("270101000000Z")))
	signed := func(tbs ...[]byte) []byte { return seq(seq(tbs...), sha256ECDSA, der(3, []byte{0, 0})) }
	serial := []byte{2, 1, 9}
	for what, body := range map[string][]byte{
		"a certificate":                  signed(der(0xa0, []byte{2, 1, 2}), serial, sha256ECDSA, name, when, name, key.spki),
		"a certificate, not":             signed(serial, sha256ECDSA, name, when, name, key.spki), // version 1
		"a certificate revocation list":  signed([]byte{2, 1, 1}, sha256ECDSA, name, der(0x17, []byte("260101000000Z"))),
		"a certificate revocation list,": signed(sha256ECDSA, name, der(0x17, []byte("260101000000Z"))), // version 1
		"a public key":                   key.spki,
		"a public key,":                  seq(der(2, bytes.Repeat([]byte{7}, 256)), der(2, []byte{1, 0, 1})), // PKCS #1
		"a private key":                  seq([]byte{2, 1, 0}, sha256ECDSA, der(octetString, []byte{0})),
		"a private key,":                 seq([]byte{2, 1, 1}, der(octetString, make([]byte, 32))), // RFC 5915
		"an encrypted private key":       seq(sha256ECDSA, der(octetString, []byte{0})),
		"a CMS or PKCS #7 message":       seq(oid(1, 2, 840, 113549, 1, 7, 2), der(0xa0, seq())),
		"a PKCS #12 file":                seq([]byte{2, 1, 3}, seq()),
		"something else":                 seq(set(null)),
		"something else,":                der(octetString, make([]byte, 200)),
	} {
		m.malformed("instead of a request: "+what, []byte(pemText(requestLabel, body)), "this is "+strings.TrimSuffix(what, ", not"))
	}
	for _, label := range []string{"PRIVATE KEY", "PUBLIC KEY", "PKCS7", "X509 CRL"} {
		m.malformed("PEM of a "+label, []byte(pemText(label, []byte{0x30, 0})), fmt.Sprintf("%q, not a CERTIFICATE REQUEST", label))
	}
}
