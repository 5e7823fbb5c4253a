package pkcs10

import (
	"bytes"
	"encoding/base64"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
)

// Decode returns the DER of a request that was sent as DER, in PEM (RFC 7468) or as
// base64 alone, in the forms that occur in practice: with any
// line ends or none, with or without padding, indented, with a byte order mark,
// with text around the PEM or a private key before it. Errors name the place. It
// does not check the DER; see [Parse]. The caller bounds body.
func Decode(body []byte) ([]byte, error) { return decode(body, true) }

func decode(body []byte, wrapped bool) ([]byte, error) {
	if isDER(body) {
		return bounded(body)
	}
	text := plainText(body)
	if len(text) == 0 {
		return nil, countersign.Errorf(countersign.BadRequest, "there is no certification request in it").
			WithNext("send a PKCS #10 request in PEM, base64 or DER")
	}
	start, end := 0, len(text)
	if block, ok, err := findPEM(text); err != nil {
		return nil, err
	} else if ok {
		start, end = block.start, block.end
	} else if err := otherText(text); err != nil {
		return nil, err
	}
	der, err := decodeBase64(text, start, end)
	if err != nil {
		return nil, err
	}
	if wrapped && bytes.HasPrefix(plainText(der), []byte(pemBegin)) { // base64 of a PEM file
		return decode(der, false)
	}
	return bounded(der)
}

func bounded(der []byte) ([]byte, error) {
	if len(der) > MaxSize {
		return nil, tooLarge()
	}
	return der, nil
}

// isDER reports whether b begins like a SEQUENCE as long as a request. No text
// does: base64 of a SEQUENCE begins with M.
func isDER(b []byte) bool {
	return len(b) > 1 && b[0] == tagSequence && (b[1] >= 0x80 || int(b[1]) == len(b)-2)
}

// plainText returns text as UTF-8 without byte order mark and without surrounding
// white space, quotation marks and zero octets.
func plainText(b []byte) []byte {
	switch {
	case len(b) < 2:
	case b[0] == 0xff && b[1] == 0xfe, b[1] == 0 && b[0] != 0:
		b = fromUTF16(b, 0)
	case b[0] == 0xfe && b[1] == 0xff, b[0] == 0 && b[1] != 0:
		b = fromUTF16(b, 1)
	}
	return bytes.Trim(b, "\ufeff \t\r\n\"'\x00\x1a")
}

// fromUTF16 returns UTF-16 as UTF-8; low is the place of an octet of lower value
// in its pair, as the first octets suggest.
func fromUTF16(b []byte, low int) []byte {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = uint16(b[2*i+low]) | uint16(b[2*i+1-low])<<8
	}
	var out []byte
	for _, r := range utf16.Decode(units) {
		out = utf8.AppendRune(out, r)
	}
	return out
}

const (
	pemBegin = "-----BEGIN "
	pemEnd   = "-----END "
	pemDash  = "-----"
	// maxLabel bounds a label of PEM; known ones have up to 30 characters.
	maxLabel = 64
)

// span is where the base64 of a PEM block is.
type span struct{ start, end int }

// findPEM finds the one block of PEM that is a certification request. Blocks of
// other kinds beside it are skipped; a block without END reaches to the end of the
// text or to the next block. It reports false for text without PEM.
func findPEM(text []byte) (found span, ok bool, err error) {
	other := ""
	for at := 0; ; {
		i := bytes.Index(text[at:], []byte(pemBegin))
		if i < 0 {
			break
		}
		at += i + len(pemBegin)
		n := bytes.Index(text[at:min(len(text), at+maxLabel)], []byte(pemDash))
		if n < 0 {
			return found, false, notText(text, at, "a PEM label without five dashes after it")
		}
		label := strings.ToUpper(strings.TrimSpace(string(text[at : at+n])))
		block := span{at + n + len(pemDash), len(text)}
		for _, marker := range []string{pemBegin, pemEnd} {
			if i := bytes.Index(text[block.start:block.end], []byte(marker)); i >= 0 {
				block.end = block.start + i
			}
		}
		at = block.end
		switch {
		case !strings.Contains(label, "CERTIFICATE") || !strings.HasSuffix(label, "REQUEST"): // NEW, SIGNING and X509 come before or between
			if other == "" {
				other = label
			}
		case ok:
			return found, false, countersign.Errorf(countersign.BadRequest, "there is more than one certification request in it").
				WithNext("send one")
		default:
			found, ok = withoutHeaders(text, block), true
		}
	}
	if !ok && other != "" {
		return found, false, countersign.Errorf(countersign.BadRequest, "the PEM is a %.40q, not a CERTIFICATE REQUEST", other).
			WithNext("send the PKCS #10 request")
	}
	return found, ok, nil
}

// withoutHeaders skips the lines of headers that RFC 1421, 4.4 puts before the
// base64.
func withoutHeaders(text []byte, s span) span {
	for {
		line := text[s.start:s.end]
		n := bytes.IndexAny(line, "\r\n")
		if n < 0 || len(bytes.TrimSpace(line[:n])) > 0 && !bytes.Contains(line[:n], []byte(":")) {
			return s
		}
		s.start += n + 1
	}
}

// otherText refuses text that is neither PEM nor base64, and names its likely format.
func otherText(text []byte) error {
	var what, next string
	switch {
	case text[0] == '{':
		what, next = "JSON", "send the header Content-Type: application/json where JSON is accepted"
	case bytes.Contains(text, []byte("BEGIN ")):
		what, next = "a PEM with a broken first line", "begin it with -----BEGIN CERTIFICATE REQUEST-----, five dashes on either side"
	case bytes.HasPrefix(text, []byte("30")) && !bytes.ContainsFunc(text, func(r rune) bool { return !unicode.Is(unicode.ASCII_Hex_Digit, r) && !unicode.IsSpace(r) && r != ':' }):
		what, next = "hexadecimal", "send the request in PEM, base64 or DER"
	case bytes.HasPrefix(text, []byte("SPKAC=")):
		what, next = "a signed public key and challenge (SPKAC)", "send a PKCS #10 request"
	default:
		return nil
	}
	return countersign.Errorf(countersign.BadRequest, "the body is %s, not a certification request in PEM, base64 or DER", what).WithNext(next)
}

// decodeBase64 decodes text[start:end], in the alphabet of either form (RFC 4648,
// 4 and 5), skipping white space and line ends that were written as \n.
func decodeBase64(text []byte, start, end int) ([]byte, error) {
	digits := make([]byte, 0, end-start)
	padded := false
	for at := start; at < end; {
		r, size := utf8.DecodeRune(text[at:end])
		switch next := text[min(at+1, end-1)]; {
		case r == '\\' && (next == 'n' || next == 'r' || next == 't'):
			size = 2
		case unicode.IsSpace(r) || r == '\ufeff' || r == '\u200b' || r == 0:
		case r == '=':
			padded = true
		case padded:
			return nil, notText(text, at, "base64 that continues after its padding")
		case r == '-':
			digits = append(digits, '+')
		case r == '_':
			digits = append(digits, '/')
		case 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '+' || r == '/':
			digits = append(digits, text[at])
		default:
			return nil, notText(text, at, "a character that base64 does not have")
		}
		at += size
	}
	der := make([]byte, base64.RawStdEncoding.DecodedLen(len(digits)))
	switch {
	case len(digits) == 0:
		return nil, countersign.Errorf(countersign.BadRequest, "there is no certification request in it: its PEM or base64 is empty").
			WithNext("send a PKCS #10 request in PEM, base64 or DER")
	case len(digits)%4 == 1:
		return nil, countersign.Errorf(countersign.BadRequest, "the base64 of the certification request has %d characters, which no base64 has: some are missing", len(digits)).
			WithNext("send all of it, and each + as it is: a form makes a blank of it")
	}
	n, err := base64.RawStdEncoding.Decode(der, digits)
	if err != nil { // no text: its characters were checked
		return nil, countersign.Errorf(countersign.BadRequest, "the base64 of the certification request cannot be decoded").WithCause(err)
	}
	return der[:n], nil
}

// notText refuses text that is neither PEM nor base64 and names the place.
func notText(text []byte, at int, what string) error {
	before := bytes.ReplaceAll(text[:at], []byte("\r\n"), []byte("\n"))
	before = bytes.ReplaceAll(before, []byte("\r"), []byte("\n"))
	line := bytes.Count(before, []byte("\n")) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	r, _ := utf8.DecodeRune(text[at:])
	return countersign.Errorf(countersign.BadRequest, "the body is neither PEM nor base64 nor DER: line %d, column %d has %s (%q)", line, column, what, r).
		WithNext("send a PKCS #10 request in PEM, base64 or DER")
}
