package mqtt

import (
	"encoding/binary"

	"github.com/countersign-iot/countersign/topics"
)

// The flags of a PUBLISH (MQTT 5, 3.3.1) beside its QoS.
const (
	flagRetain = 0x01
	flagDup    = 0x08
)

// publish is a PUBLISH packet (MQTT 5, 3.3). It shares the frame's memory.
type publish struct {
	qos     byte
	topic   []byte // empty: the alias means it
	id      uint16 // 0 with QoS 0
	alias   uint16 // 0: none
	props   []byte // MQTT 5 property block
	sender  bool   // among them is one that only the gateway may set
	expires bool   // among them is a Message Expiry Interval
	subID   bool   // among them is a subscription identifier
	payload []byte
}

func parsePublish(f frame, level byte) (publish, error) {
	p := publish{qos: f.flags() >> 1 & 3}
	s := scanner{b: f.body}
	p.topic = s.binary("the topic name") // checked where the topic is used
	if p.qos > 0 {
		p.id = s.packetID()
	} else if f.flags()&flagDup != 0 {
		return p, malformed("DUP with QoS 0") // [MQTT-3.3.1-2]
	}
	p.props = s.properties(level, pktPublish, func(q property) error {
		switch q.id {
		case propTopicAlias:
			p.alias = uint16(q.number) //nolint:gosec // kindU16
		case propMessageExpiry:
			p.expires = true
		case propSubscriptionID:
			p.subID = true
		case propResponseTopic:
			if !topics.ValidName(string(q.raw[3:])) { // [MQTT-3.3.2-14]
				return breach(ProtocolError, "the response topic is no topic name")
			}
		case propUser:
			p.sender = p.sender || isSender(q)
		}
		return nil
	})
	p.payload = s.b
	if s.err == nil && len(p.topic) == 0 && p.alias == 0 {
		return p, breach(ProtocolError, "PUBLISH without a topic")
	}
	return p, s.err
}

// ack is PUBACK, PUBREC, PUBREL or PUBCOMP (MQTT 5, 3.4 to 3.7).
type ack struct {
	id   uint16
	code Reason
}

func parseAck(f frame, level byte) (ack, error) {
	s := scanner{b: f.body}
	a := ack{id: s.packetID()}
	a.code = s.reason(level, f.kind(), good)
	return a, s.done()
}

// ackPacket is an acknowledgment of kind. Success has the same bytes in both versions.
func ackPacket(kind byte, id uint16, code Reason) []byte {
	head := kind << 4
	if kind == pktPubrel {
		head |= 0x02
	}
	if code == Success {
		return binary.BigEndian.AppendUint16([]byte{head, 2}, id)
	}
	return append(binary.BigEndian.AppendUint16([]byte{head, 3}, id), byte(code))
}

// subscribe is a SUBSCRIBE or UNSUBSCRIBE packet (MQTT 5, 3.8 and 3.10).
type subscribe struct {
	id      uint16
	props   []byte
	subID   uint32 // subscription identifier; 0: none
	filters []subscription
}

type subscription struct {
	filter  string
	options byte // QoS in the two lowest bits; 0 in UNSUBSCRIBE
}

// maxFilters bounds one SUBSCRIBE. Devices send a handful.
const maxFilters = 256

func parseSubscribe(f frame, level byte) (*subscribe, error) {
	s := scanner{b: f.body}
	p := &subscribe{id: s.packetID()}
	p.props = s.properties(level, f.kind(), func(q property) error {
		if q.id == propSubscriptionID {
			p.subID = q.number
		}
		return nil
	})
	for s.err == nil && len(s.b) > 0 {
		if len(p.filters) == maxFilters {
			return nil, breach(QuotaExceeded, "more than %d filters in one packet", maxFilters)
		}
		sub := subscription{filter: string(s.text("a topic filter"))}
		if f.kind() == pktSubscribe {
			sub.options = s.u8("the subscription options")
			if err := checkOptions(sub, level); s.err == nil && err != nil {
				return nil, err
			}
		}
		p.filters = append(p.filters, sub)
	}
	if s.err == nil && len(p.filters) == 0 {
		return nil, breach(ProtocolError, "no topic filter")
	}
	return p, s.err
}

// checkOptions: MQTT 5, 3.8.3.1; MQTT 3.1.1, 3.8.3.
func checkOptions(sub subscription, level byte) error {
	o := sub.options
	_, shared, _ := topics.Shared(sub.filter)
	switch {
	case o&3 == 3, o&0xC0 != 0, level < 5 && o&0xFC != 0:
		return malformed("subscription options %x", o)
	case o&0x30 == 0x30:
		return breach(ProtocolError, "retain handling 3")
	case level == 5 && shared && o&0x04 != 0:
		return breach(ProtocolError, "no local on a shared subscription") // [MQTT-3.8.3-4]
	}
	return nil
}

// encode writes the packet of kind with the filters that it still has.
func (p *subscribe) encode(kind, level byte) []byte {
	body := appendProps(binary.BigEndian.AppendUint16(nil, p.id), level, p.props)
	for _, s := range p.filters {
		body = appendText(body, s.filter)
		if kind == pktSubscribe {
			body = append(body, s.options)
		}
	}
	return packet(kind<<4|0x02, body)
}

// suback is a SUBACK or UNSUBACK packet (MQTT 5, 3.9 and 3.11).
type suback struct {
	id    uint16
	props []byte
	codes []byte
}

func parseSuback(f frame, level byte) (*suback, error) {
	s := scanner{b: f.body}
	p := &suback{id: s.u16("the packet identifier")}
	p.props = s.properties(level, f.kind(), nil)
	p.codes = s.b
	return p, s.err
}

func (p *suback) encode(kind, level byte) []byte {
	body := appendProps(binary.BigEndian.AppendUint16(nil, p.id), level, p.props)
	if kind == pktSuback || level == 5 {
		body = append(body, p.codes...)
	}
	return packet(kind<<4, body)
}

// disconnect is a DISCONNECT packet (MQTT 5, 3.14).
type disconnect struct {
	code      Reason
	hasExpiry bool
	expiry    uint32
}

func parseDisconnect(f frame, level byte) (disconnect, error) {
	var d disconnect
	s := scanner{b: f.body}
	d.code = s.reason(level, pktDisconnect, func(p property) error {
		if p.id == propSessionExpiry {
			d.hasExpiry, d.expiry = true, p.number
		}
		return nil
	})
	return d, s.done()
}
