package pkcs10

import (
	"encoding/hex"
	"errors"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// Identifier octets of the string types (X.680, 41).
const (
	tagUTF8      = 0x0c
	tagNumeric   = 0x12
	tagPrintable = 0x13
	tagTeletex   = 0x14
	tagIA5       = 0x16
	tagVisible   = 0x1a
	tagGeneral   = 0x1b
	tagUniversal = 0x1c
	tagBMP       = 0x1e
)

var (
	errNotString = errors.New("it is not a string")
	errNotUTF8   = errors.New("it is not UTF-8")
	errOddString = errors.New("it has a part of a character at its end")
	errCharacter = errors.New("it has a character that does not exist")
)

// readString decodes a string of any type. The character set of the type is not
// enforced: encoders in the field use PrintableString and IA5String for any text.
// Octets above 127 of a one-octet type are read as UTF-8 if they are valid, and as
// Latin-1 otherwise, as OpenSSL reads T61String.
func readString(e element) (string, error) {
	switch e.tag {
	case tagUTF8:
		if !utf8.Valid(e.body) {
			return "", errNotUTF8
		}
		return string(e.body), nil
	case tagNumeric, tagPrintable, tagTeletex, tagIA5, tagVisible, tagGeneral:
		if utf8.Valid(e.body) {
			return string(e.body), nil
		}
		return latin1(e.body), nil
	case tagBMP:
		return wide(e.body, 2)
	case tagUniversal:
		return wide(e.body, 4)
	}
	return "", errNotString
}

func latin1(b []byte) string {
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

// wide decodes big-endian characters of 2 octets, as UTF-16, or of 4 octets.
func wide(b []byte, width int) (string, error) {
	if len(b)%width != 0 {
		return "", errOddString
	}
	var runes []rune
	if width == 2 {
		units := make([]uint16, len(b)/2)
		for i := range units {
			units[i] = uint16(b[2*i])<<8 | uint16(b[2*i+1])
		}
		runes = utf16.Decode(units)
	} else {
		for i := 0; i < len(b); i += 4 {
			r := rune(b[i])<<24 | rune(b[i+1])<<16 | rune(b[i+2])<<8 | rune(b[i+3])
			if !utf8.ValidRune(r) {
				return "", errCharacter
			}
			runes = append(runes, r)
		}
	}
	if slices.Contains(runes, utf8.RuneError) {
		return "", errCharacter
	}
	return string(runes), nil
}

// showString decodes a string that is only shown: what cannot be decoded
// becomes the hexadecimal form of RFC 4514, 2.4.
func showString(e element) string {
	if s, err := readString(e); err == nil {
		return s
	}
	return "#" + hex.EncodeToString(e.raw)
}
