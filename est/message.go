package est

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"slices"
)

// DefaultMaxBody bounds a request body: base64 makes a request of
// countersign.MaxCSR 88 KiB, line breaks and PEM lines take a little more.
const DefaultMaxBody = 96 << 10

// lineLength of base64 is PEM's, the longest that every decoder takes.
const lineLength = 64

// encodeBody returns der in base64 (RFC 8951, 3.1). Two families of clients want
// opposite forms: OpenSSL's decoder reads only short lines, and strongSwan's
// stumbles over a line break. Only the second sends no User-Agent.
func encodeBody(der []byte, userAgent string) []byte {
	if userAgent == "" {
		return base64.StdEncoding.AppendEncode(nil, der)
	}
	return encodeLines(der)
}

func encodeLines(der []byte) []byte {
	const octets = lineLength / 4 * 3
	out := make([]byte, 0, base64.StdEncoding.EncodedLen(len(der))+len(der)/octets+1)
	for chunk := range slices.Chunk(der, octets) {
		out = append(base64.StdEncoding.AppendEncode(out, chunk), '\n')
	}
	return out
}

var errBase64 = errors.New("neither base64 nor PEM")

// decodeBody reads the body of an answer in any of the forms that servers send:
// base64 with or without white space and padding, PEM, and plain DER. What the
// DER holds is for the reader. Requests are read by pkcs10.Decode.
func decodeBody(body []byte) ([]byte, error) {
	if len(body) > 1 && body[0] == 0x30 && body[1] >= 0x80 {
		return body, nil // a SEQUENCE with a long length, no text begins like that
	}
	if bytes.Contains(body, []byte("-----BEGIN ")) {
		if block, _ := pem.Decode(body); block != nil && len(block.Bytes) > 0 {
			return block.Bytes, nil
		}
		return nil, errBase64
	}
	text := make([]byte, 0, len(body))
	for _, c := range body {
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			text = append(text, c)
		}
	}
	text = bytes.TrimRight(text, "=")
	der, err := base64.RawStdEncoding.AppendDecode(nil, text)
	if err != nil || len(der) == 0 {
		return nil, errBase64
	}
	return der, nil
}
