package mqtt

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// scanner reads the data types of MQTT 5, 1.5. After the first failure it
// returns zero values, so a caller may check err once.
type scanner struct {
	b   []byte
	err error
}

func (s *scanner) fail(what string) {
	if s.err == nil {
		s.err = malformed("the packet ends within %s, or that is malformed", what)
	}
	s.b = nil
}

func (s *scanner) u8(what string) byte {
	if len(s.b) < 1 {
		s.fail(what)
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return v
}

func (s *scanner) u16(what string) uint16 {
	if len(s.b) < 2 {
		s.fail(what)
		return 0
	}
	v := binary.BigEndian.Uint16(s.b)
	s.b = s.b[2:]
	return v
}

func (s *scanner) u32(what string) uint32 {
	if len(s.b) < 4 {
		s.fail(what)
		return 0
	}
	v := binary.BigEndian.Uint32(s.b)
	s.b = s.b[4:]
	return v
}

func (s *scanner) varint(what string) int {
	v, size := remainingLength(s.b)
	if size <= 0 || size > 1 && s.b[size-1] == 0 { // [MQTT-1.5.5-1]
		s.fail(what)
		return 0
	}
	s.b = s.b[size:]
	return v
}

// take reads n bytes.
func (s *scanner) take(n int, what string) []byte {
	if len(s.b) < n {
		s.fail(what)
		return nil
	}
	v := s.b[:n:n]
	s.b = s.b[n:]
	return v
}

// binary reads binary data with its two-byte length.
func (s *scanner) binary(what string) []byte { return s.take(int(s.u16(what)), what) }

// text reads a UTF-8 string. It refuses what MQTT forbids (1.5.4): ill-formed
// UTF-8, surrogates among it, and U+0000.
func (s *scanner) text(what string) []byte {
	v := s.binary(what)
	if !validText(v) {
		s.fail(what)
		return nil
	}
	return v
}

func validText(b []byte) bool {
	return !slices.Contains(b, 0) && utf8.Valid(b)
}

// properties reads a property block: its bytes without the length.
func (s *scanner) properties(what string) []byte { return s.take(s.varint(what), what) }

// done fails unless all was read.
func (s *scanner) done() error {
	if s.err == nil && len(s.b) > 0 {
		s.err = malformed("%d bytes after the end of the packet", len(s.b))
	}
	return s.err
}

// varintSize is how many octets appendVarint takes for n.
func varintSize(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

func appendVarint(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n)) //nolint:gosec // less than 0x80
}

func appendText[T string | []byte](b []byte, s T) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s))) //nolint:gosec // callers bound it
	return append(b, s...)
}

// packet puts a fixed header before body.
func packet(head byte, body []byte) []byte {
	b := append(make([]byte, 0, len(body)+5), head)
	return append(appendVarint(b, len(body)), body...)
}
