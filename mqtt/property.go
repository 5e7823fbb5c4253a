package mqtt

import "encoding/binary"

// The properties that the gateway reads or writes (MQTT 5, 2.2.2.2).
const (
	propMessageExpiry   = 0x02
	propSessionExpiry   = 0x11
	propAssignedID      = 0x12
	propServerKeepAlive = 0x13
	propResponseTopic   = 0x08
	propAuthMethod      = 0x15
	propAuthData        = 0x16
	propWillDelay       = 0x18
	propRequestResponse = 0x19
	propResponseInfo    = 0x1A
	propSubscriptionID  = 0x0B
	propReasonString    = 0x1F
	propReceiveMaximum  = 0x21
	propTopicAliasMax   = 0x22
	propTopicAlias      = 0x23
	propUser            = 0x26
	propMaxPacketSize   = 0x27
	propWildcardSubs    = 0x28
	propSubIDs          = 0x29
	propSharedSubs      = 0x2A
)

type propKind byte

const (
	kindByte propKind = iota + 1
	kindU16
	kindU32
	kindVarint
	kindText
	kindBinary
	kindPair
)

// pktWill means the will properties of a CONNECT in the property table.
const pktWill = 0

type propRule struct {
	kind propKind
	in   uint16 // bit set of the packet types that may carry it
}

func in(kinds ...byte) uint16 {
	var set uint16
	for _, k := range kinds {
		set |= 1 << k
	}
	return set
}

// propRules is the table of MQTT 5, 2.2.2.2.
var propRules = [...]propRule{
	0x01: {kindByte, in(pktPublish, pktWill)},
	0x02: {kindU32, in(pktPublish, pktWill)},
	0x03: {kindText, in(pktPublish, pktWill)},
	0x08: {kindText, in(pktPublish, pktWill)},
	0x09: {kindBinary, in(pktPublish, pktWill)},
	0x0B: {kindVarint, in(pktPublish, pktSubscribe)},
	0x11: {kindU32, in(pktConnect, pktConnack, pktDisconnect)},
	0x12: {kindText, in(pktConnack)},
	0x13: {kindU16, in(pktConnack)},
	0x15: {kindText, in(pktConnect, pktConnack, pktAuth)},
	0x16: {kindBinary, in(pktConnect, pktConnack, pktAuth)},
	0x17: {kindByte, in(pktConnect)},
	0x18: {kindU32, in(pktWill)},
	0x19: {kindByte, in(pktConnect)},
	0x1A: {kindText, in(pktConnack)},
	0x1C: {kindText, in(pktConnack, pktDisconnect)},
	0x1F: {kindText, in(pktConnack, pktPuback, pktPubrec, pktPubrel, pktPubcomp, pktSuback, pktUnsuback, pktDisconnect, pktAuth)},
	0x21: {kindU16, in(pktConnect, pktConnack)},
	0x22: {kindU16, in(pktConnect, pktConnack)},
	0x23: {kindU16, in(pktPublish)},
	0x24: {kindByte, in(pktConnack)},
	0x25: {kindByte, in(pktConnack)},
	0x26: {kindPair, in(pktConnect, pktConnack, pktPublish, pktWill, pktPuback, pktPubrec, pktPubrel, pktPubcomp,
		pktSubscribe, pktSuback, pktUnsubscribe, pktUnsuback, pktDisconnect, pktAuth)},
	0x27: {kindU32, in(pktConnect, pktConnack)},
	0x28: {kindByte, in(pktConnack)},
	0x29: {kindByte, in(pktConnack)},
	0x2A: {kindByte, in(pktConnack)},
}

// property is one property of a packet: its number if its kind is one, and all
// its bytes, identifier included.
type property struct {
	id     byte
	number uint32
	raw    []byte
}

// walkProperties calls each for every property of a block that belongs to a packet
// of type kind. It refuses unknown ones, those of other packets and duplicates.
func walkProperties(block []byte, kind byte, each func(property) error) error {
	var seen uint64
	s := scanner{b: block}
	for len(s.b) > 0 && s.err == nil {
		start := s.b
		id := s.varint("a property identifier")
		if id >= len(propRules) || propRules[id].in&(1<<kind) == 0 {
			return malformed("property %d does not belong into packet type %d", id, kind)
		}
		repeats := id == propUser || id == propSubscriptionID && kind == pktPublish
		if seen&(1<<id) != 0 && !repeats {
			return breach(ProtocolError, "property %d comes twice", id)
		}
		seen |= 1 << id
		number := s.value(propRules[id].kind)
		if s.err != nil {
			return s.err
		}
		p := property{byte(id), number, start[:len(start)-len(s.b)]} //nolint:gosec // less than len(propRules)
		if err := checkProperty(p.id, number); err != nil {
			return err
		}
		if err := each(p); err != nil {
			return err
		}
	}
	return s.err
}

// properties reads the property block of a packet of type kind, as walkProperties does,
// and returns its bytes without the length. Packets before MQTT 5 have none. Where each is
// nil the block is not looked at.
func (s *scanner) properties(level, kind byte, each func(property) error) []byte {
	if level < 5 {
		return nil
	}
	what := "the properties"
	if kind == pktWill {
		what = "the will properties"
	}
	block := s.take(s.varint(what), what)
	if each != nil && len(block) > 0 {
		if err := walkProperties(block, kind, each); err != nil {
			s.stop(err)
		}
	}
	return block
}

// reason reads the reason code and the properties at the end of a packet of MQTT 5, both
// of which may be missing (MQTT 5, 3.4.2 and 3.14.2).
func (s *scanner) reason(level, kind byte, each func(property) error) (code Reason) {
	if level == 5 && len(s.b) > 0 {
		code = Reason(s.u8("the reason code"))
		if len(s.b) > 0 {
			s.properties(level, kind, each)
		}
	}
	return code
}

// good is for properties that are only checked.
func good(property) error { return nil }

func (s *scanner) value(kind propKind) uint32 {
	const what = "a property"
	switch kind {
	case kindByte:
		return uint32(s.u8(what))
	case kindU16:
		return uint32(s.u16(what))
	case kindU32:
		return s.u32(what)
	case kindVarint:
		return uint32(s.varint(what)) //nolint:gosec // at most 28 bits
	case kindText:
		s.text(what)
	case kindBinary:
		s.binary(what)
	case kindPair:
		s.text(what)
		s.text(what)
	}
	return 0
}

// checkProperty holds the values that are a protocol error in any packet.
func checkProperty(id byte, n uint32) error {
	switch id {
	case propReceiveMaximum, propMaxPacketSize, propSubscriptionID:
		if n == 0 {
			return breach(ProtocolError, "property %d is 0", id)
		}
	case propTopicAlias:
		if n == 0 {
			return breach(BadTopicAlias, "topic alias 0")
		}
	case 0x01, 0x17, 0x19, 0x24, 0x25, propWildcardSubs, propSubIDs, propSharedSubs:
		if n > 1 {
			return breach(ProtocolError, "property %d is %d, not 0 or 1", id, n)
		}
	}
	return nil
}

func appendU16Prop(b []byte, id byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, id), v)
}

func appendU32Prop(b []byte, id byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, id), v)
}

func appendTextProp(b []byte, id byte, s string) []byte { return appendText(append(b, id), s) }
