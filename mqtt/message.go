package mqtt

import (
	"bytes"
	"encoding/binary"

	"github.com/countersign-iot/countersign/topics"
)

// connect is a CONNECT packet (MQTT 5, 3.1).
type connect struct {
	level      byte // 5, 4 for MQTT 3.1.1, or levelOld
	bridge     bool // the client is another broker, see bridgeBit
	cleanStart bool
	keepAlive  uint16 // seconds; 0 is off
	clientID   string
	props      []byte // MQTT 5 property block
	will       *will
	username   string
	password   []byte

	// From the properties, or their defaults.
	sessionExpiry uint32
	receiveMax    uint16
	maxPacket     uint32 // 0: no limit
	aliasMax      uint16
	hasMethod     bool
	method        string // of enhanced authentication
	data          []byte // its first step
	wantsInbox    bool   // Request Response Information
}

type will struct {
	qos     byte
	retain  bool
	topic   string
	payload []byte
	props   []byte // MQTT 5 property block
}

// badVersion is a CONNECT of a protocol version that is not served.
type badVersion struct{ level byte }

func (e *badVersion) Error() string { return "the protocol version is not supported" }

// bridgeBit in the protocol level is how brokers say that they are one (mosquitto's
// try_private, and others after it). The level without it counts.
const bridgeBit = 0x80

// levelOld is the protocol level of MQTT 3.1. Its packets are those of MQTT 3.1.1, except
// for the protocol name, DUP where a packet is sent again, and the reserved octet of CONNACK.
const levelOld = 3

const (
	flagCleanStart = 0x02
	flagWill       = 0x04
	flagWillRetain = 0x20
	flagPassword   = 0x40
	flagUsername   = 0x80
)

// parseConnect reads a CONNECT. The result shares no memory with the frame. The
// level is set on an error too, as far as it was read.
func parseConnect(f frame) (*connect, error) {
	c := &connect{receiveMax: 65535}
	if f.kind() != pktConnect {
		return c, malformed("the first packet is of type %d, not CONNECT", f.kind())
	}
	if err := f.checkFlags(0); err != nil {
		return c, err
	}
	s := scanner{b: bytes.Clone(f.body)}
	name := string(s.text("the protocol name"))
	level := s.u8("the protocol level")
	if s.err != nil {
		return c, s.err
	}
	c.bridge = level&bridgeBit != 0
	level &^= bridgeBit
	switch {
	case name == "MQIsdp" && level == levelOld, name == "MQTT" && (level == 4 || level == 5 && !c.bridge):
	case name == "MQIsdp", name == "MQTT":
		return c, &badVersion{level}
	default:
		return c, malformed("protocol name %.20q", name)
	}
	c.level = level
	flags := s.u8("the connect flags")
	c.keepAlive = s.u16("the keep alive")
	if err := c.checkConnectFlags(flags); s.err == nil && err != nil {
		return c, err
	}
	c.props = s.properties(level, pktConnect, c.readProperty)
	if s.err == nil && c.data != nil && !c.hasMethod { // MQTT 5, 3.1.2.11.10
		return c, breach(ProtocolError, "authentication data without a method")
	}
	if level < 5 && flags&flagCleanStart == 0 {
		c.sessionExpiry = 0xFFFFFFFF // a 3.1.1 session without clean session never expires
	}
	c.cleanStart = flags&flagCleanStart != 0
	c.clientID = string(s.text("the client identifier"))
	if flags&flagWill != 0 {
		c.readWill(&s, flags)
	}
	if flags&flagUsername != 0 {
		c.username = string(s.text("the user name"))
	}
	if flags&flagPassword != 0 {
		c.password = s.binary("the password")
	}
	return c, s.done()
}

// checkConnectFlags: MQTT 5, 3.1.2.3 to 3.1.2.9.
func (c *connect) checkConnectFlags(flags byte) error {
	qos := flags >> 3 & 3
	switch {
	case flags&1 != 0:
		return malformed("the reserved connect flag is set")
	case flags&flagWill == 0 && (qos != 0 || flags&flagWillRetain != 0):
		return malformed("will QoS or will retain without a will")
	case qos == 3:
		return malformed("will QoS 3")
	case c.level < 5 && flags&flagUsername == 0 && flags&flagPassword != 0: // [MQTT-3.1.2-22] of 3.1.1
		return malformed("a password without a user name")
	}
	return nil
}

func (c *connect) readProperty(p property) error {
	switch p.id {
	case propSessionExpiry:
		c.sessionExpiry = p.number
	case propReceiveMaximum:
		c.receiveMax = uint16(p.number) //nolint:gosec // kindU16
	case propMaxPacketSize:
		c.maxPacket = p.number
	case propTopicAliasMax:
		c.aliasMax = uint16(p.number) //nolint:gosec // kindU16
	case propAuthMethod:
		c.hasMethod, c.method = true, string(p.raw[3:])
	case propAuthData:
		c.data = p.raw[3:]
	case propRequestResponse:
		c.wantsInbox = p.number == 1
	}
	return nil
}

func (c *connect) readWill(s *scanner, flags byte) {
	c.will = &will{qos: flags >> 3 & 3, retain: flags&flagWillRetain != 0}
	c.will.props = s.properties(c.level, pktWill, good)
	c.will.topic = string(s.text("the will topic"))
	c.will.payload = s.binary("the will")
	if s.err == nil && !topics.ValidName(c.will.topic) {
		s.stop(breach(BadTopicName, "the will topic is no topic name"))
	}
}

// encode writes the CONNECT for an engine that speaks level.
func (c *connect) encode(level byte) []byte {
	var flags byte
	if c.cleanStart {
		flags |= flagCleanStart
	}
	body := append(appendText(nil, "MQTT"), level, 0)
	flagsAt := len(body) - 1
	body = binary.BigEndian.AppendUint16(body, c.keepAlive)
	body = appendText(appendProps(body, level, c.props), c.clientID)
	if w := c.will; w != nil {
		flags |= flagWill | w.qos<<3
		if w.retain {
			flags |= flagWillRetain
		}
		body = appendText(appendText(appendProps(body, level, w.props), w.topic), w.payload)
	}
	if c.username != "" {
		flags |= flagUsername
		body = appendText(body, c.username)
	}
	if c.password != nil {
		flags |= flagPassword
		body = appendText(body, c.password)
	}
	body[flagsAt] = flags
	return packet(pktConnect<<4, body)
}

// connack is a CONNACK packet (MQTT 5, 3.2).
type connack struct {
	present bool   // session present
	code    byte   // of the version of the connection
	props   []byte // MQTT 5 property block
}

func parseConnack(f frame, level byte) (*connack, error) {
	if f.kind() != pktConnack {
		return nil, malformed("packet type %d instead of CONNACK", f.kind())
	}
	s := scanner{b: f.body}
	a := &connack{present: s.u8("the acknowledge flags")&1 != 0, code: s.u8("the return code")}
	a.props = bytes.Clone(s.properties(level, pktConnack, nil))
	return a, s.done()
}

func (a *connack) encode(level byte) []byte {
	body := []byte{0, a.code}
	if a.present {
		body[0] = 1
	}
	return packet(pktConnack<<4, appendProps(body, level, a.props))
}

// disconnectPacket is the MQTT 5 DISCONNECT with a reason string, if there is one
// and the peer takes a packet of that size.
func disconnectPacket(code Reason, reason string, maxPacket uint32) []byte {
	var props []byte
	if reason != "" {
		props = appendTextProp(nil, propReasonString, clip(reason))
	}
	p := packet(pktDisconnect<<4, appendProps([]byte{byte(code)}, 5, props))
	if maxPacket > 0 && len(p) > int(maxPacket) {
		p = packet(pktDisconnect<<4, []byte{byte(code)})
	}
	return p
}

// maxReasonString keeps last words within one small TLS record.
const maxReasonString = 512

// clip bounds a reason string without cutting a character.
func clip(s string) string {
	if len(s) <= maxReasonString {
		return s
	}
	n := maxReasonString
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

// protocol is the name of what a client speaks.
func (c *connect) protocol(web bool) string {
	name := "MQTT 3.1.1"
	switch c.level {
	case 5:
		name = "MQTT 5"
	case levelOld:
		name = "MQTT 3.1"
	}
	if c.bridge {
		name += " bridge"
	}
	if web {
		name += " over WebSocket"
	}
	return name
}

func refusalPacket(level byte, r *refusal) []byte {
	a := connack{code: r.V3}
	if level == 5 {
		a.code = byte(r.V5)
		if r.reason != "" {
			a.props = appendTextProp(nil, propReasonString, clip(r.reason))
		}
	}
	return a.encode(level)
}

// checkClientID holds the identifier against what every gateway asks. Whether it
// fits the device is for the Gatekeeper to decide.
func checkClientID(c *connect) error {
	switch {
	case len(c.clientID) > maxClientID:
		return refuse(connBadClientID, BadClientID, "the client identifier is longer than 257 bytes")
	case c.clientID == "" && c.level == levelOld:
		return refuse(connBadClientID, BadClientID, "MQTT 3.1 needs a client identifier")
	case c.clientID == "" && c.level == 4 && !c.cleanStart: // [MQTT-3.1.3-8]
		return refuse(connBadClientID, BadClientID, "an empty client identifier needs a clean session")
	}
	return nil
}
