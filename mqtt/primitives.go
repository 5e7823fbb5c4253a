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

// stop notes a failure, unless there was one before, and that nothing else is read.
func (s *scanner) stop(err error) {
	if s.err == nil {
		s.err = err
	}
	s.b = nil
}

func (s *scanner) fail(what string) {
	s.stop(malformed("the packet ends within %s, or that is malformed", what))
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

func (s *scanner) u8(what string) byte {
	if b := s.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (s *scanner) u16(what string) uint16 {
	if b := s.take(2, what); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (s *scanner) u32(what string) uint32 {
	if b := s.take(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// packetID reads a packet identifier, which is never 0 (MQTT 5, 2.2.1).
func (s *scanner) packetID() uint16 {
	id := s.u16("the packet identifier")
	if id == 0 && s.err == nil {
		s.stop(malformed("packet identifier 0"))
	}
	return id
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

// appendProps appends a property block, which packets before MQTT 5 do not have.
func appendProps(b []byte, level byte, props []byte) []byte {
	if level < 5 {
		return b
	}
	return append(appendVarint(b, len(props)), props...)
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

// put makes the map if need be; most sessions never use most of theirs.
func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// take removes k and reports whether it was there.
func take[K comparable, V any](m map[K]V, k K) bool {
	_, ok := m[k]
	delete(m, k)
	return ok
}
