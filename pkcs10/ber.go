package pkcs10

import (
	"errors"
	"fmt"
)

// maxDepth bounds how deep elements may be nested where their end has to be
// searched for, and where they are encoded again. Requests need about ten.
const maxDepth = 32

// Identifier octets of the types that a request is made of (X.690, 8.1.2).
const (
	tagInteger     = 0x02
	tagBitString   = 0x03
	tagOctetString = 0x04
	tagNull        = 0x05
	tagOID         = 0x06
	tagSequence    = 0x30
	tagSet         = 0x31
	tagContext0    = 0xa0 // [0], constructed

	constructed = 0x20
	highTag     = 0x1f // a tag number of more than one octet follows
)

// element is one element of BER. Unlike DER, BER allows lengths that are
// indefinite or longer than needed; devices in the field send both.
type element struct {
	tag  int    // identifier octet; -1 for a tag number of several octets, which nothing here uses
	raw  []byte // all of it
	body []byte // its content, without the end-of-contents octets
}

// shortError reports an element that is truncated.
type shortError struct{ missing int }

func (e *shortError) Error() string {
	return fmt.Sprintf("it ends %d octets early", e.missing)
}

var (
	errLength = errors.New("a length in it is malformed")
	errDepth  = fmt.Errorf("it is nested deeper than %d", maxDepth)
)

// readElement reads the first element of in and returns what follows it.
func readElement(in []byte) (e element, rest []byte, err error) { return readNested(in, maxDepth) }

func readNested(in []byte, depth int) (e element, rest []byte, err error) {
	if depth == 0 {
		return e, nil, errDepth
	}
	if len(in) < 2 {
		return e, nil, &shortError{2 - len(in)}
	}
	e.tag = int(in[0])
	at := 1
	if in[0]&highTag == highTag {
		e.tag = -1
		for at < len(in) && in[at]&0x80 != 0 {
			at++
		}
		if at++; at >= len(in) {
			return e, nil, &shortError{1}
		}
	}
	length, at, err := readLength(in, at)
	if err != nil {
		return e, nil, err
	}
	if length < 0 { // indefinite
		if in[0]&constructed == 0 {
			return e, nil, errLength
		}
		return readIndefinite(e, in, at, depth)
	}
	if have := len(in) - at; length > have {
		return e, nil, &shortError{length - have}
	}
	e.raw, e.body = in[:at+length], in[at:at+length]
	return e, in[at+length:], nil
}

// readLength reads length octets from in[at:] and returns where they end. An
// indefinite length is -1.
func readLength(in []byte, at int) (length, end int, err error) {
	first := in[at]
	at++
	switch {
	case first < 0x80:
		return int(first), at, nil
	case first == 0x80:
		return -1, at, nil
	case first == 0xff: // X.690, 8.1.3.5 (c)
		return 0, 0, errLength
	}
	n := int(first & 0x7f)
	if n > len(in)-at {
		return 0, 0, &shortError{n - (len(in) - at)}
	}
	for _, b := range in[at : at+n] {
		if length = length<<8 | int(b); length > 1<<24 {
			return 0, 0, errLength
		}
	}
	return length, at + n, nil
}

// readIndefinite reads the elements from in[at:] up to the end-of-contents octets.
func readIndefinite(e element, in []byte, at, depth int) (element, []byte, error) {
	rest := in[at:]
	for {
		if len(rest) >= 2 && rest[0] == 0 && rest[1] == 0 {
			end := len(in) - len(rest)
			e.raw, e.body = in[:end+2], in[at:end]
			return e, rest[2:], nil
		}
		var err error
		if _, rest, err = readNested(rest, depth-1); err != nil {
			return e, nil, err
		}
	}
}

// encodeDER returns an element with the given content.
func encodeDER(tag byte, body []byte) []byte {
	out := []byte{tag}
	switch n := len(body); {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 1<<8:
		out = append(out, 0x81, byte(n))
	case n < 1<<16:
		out = append(out, 0x82, byte(n>>8), byte(n)) //nolint:gosec // below 1<<16
	default:
		out = append(out, 0x83, byte(n>>16), byte(n>>8), byte(n)) //nolint:gosec // a part of a request, which is at most MaxSize
	}
	return append(out, body...)
}

// toDER returns the element with all its lengths in the one form that DER allows.
func toDER(e element) ([]byte, error) { return nestedDER(e, maxDepth) }

func nestedDER(e element, depth int) ([]byte, error) {
	if depth == 0 {
		return nil, errDepth
	}
	if e.tag < 0 {
		return e.raw, nil
	}
	tag := byte(e.tag) //nolint:gosec // one octet, see readNested
	if tag&constructed == 0 {
		return encodeDER(tag, e.body), nil
	}
	var body []byte
	for rest := e.body; len(rest) > 0; {
		var child element
		var err error
		if child, rest, err = readElement(rest); err != nil {
			return nil, err
		}
		der, err := nestedDER(child, depth-1)
		if err != nil {
			return nil, err
		}
		body = append(body, der...)
	}
	return encodeDER(tag, body), nil
}

// list reads the elements of a SEQUENCE, SET or context tag one after another.
type list struct{ rest []byte }

func (l *list) empty() bool { return len(l.rest) == 0 }

// next reads one element of any tag.
func (l *list) next() (e element, err error) {
	e, l.rest, err = readElement(l.rest)
	return e, err
}

// nextOf reads one element, which must have the tag.
func (l *list) nextOf(tag int) (element, error) {
	e, err := l.next()
	if err == nil && e.tag != tag {
		err = fmt.Errorf("it has an element of type 0x%02x where 0x%02x belongs", e.tag&0xff, tag)
	}
	return e, err
}
