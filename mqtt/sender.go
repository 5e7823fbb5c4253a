package mqtt

import (
	"encoding/binary"
	"strings"
)

// The user properties that name the sender of a message. The gateway sets them on what
// clients publish, wills among it, and takes them out of what clients write
// there, so a receiver may trust them. They need MQTT 5 on both sides; elsewhere
// the topic shows who sent it.
const (
	propertyDevice = "x-device-id"
	propertyFleet  = "x-fleet"
)

// maxStamp is room for the sender's name in what a client is to receive: names of
// devices and fleets are short.
const maxStamp = 1024

// stampOf is the property block that names the sender.
func stampOf(device, fleet string) []byte {
	var b []byte
	for _, p := range [][2]string{{propertyDevice, device}, {propertyFleet, fleet}} {
		if p[1] != "" {
			b = appendText(appendText(append(b, propUser), p[0]), p[1])
		}
	}
	return b
}

// isSender reports whether a user property is one that only the gateway may set.
func isSender(p property) bool {
	if p.id != propUser {
		return false
	}
	n := 3 + int(binary.BigEndian.Uint16(p.raw[1:]))
	key := string(p.raw[3:n])
	return strings.EqualFold(key, propertyDevice) || strings.EqualFold(key, propertyFleet)
}

// keepProperties is a property block of a packet of type kind without those that
// drop names. The block was found good before.
func keepProperties(block []byte, kind byte, drop func(property) bool) []byte {
	var out []byte
	_ = walkProperties(block, kind, func(p property) error {
		if !drop(p) {
			out = append(out, p.raw...)
		}
		return nil
	})
	return out
}

// stamped is a will with the sender's name. It waits no longer than the session
// does, [MQTT-3.1.2-8]: mosquitto 2.0.11 would let it.
func (w *will) stamped(stamp []byte, expiry uint32) *will {
	if w == nil {
		return nil
	}
	c := *w
	var delay uint32
	c.props = append(keepProperties(w.props, pktWill, func(p property) bool {
		if p.id == propWillDelay {
			delay = p.number
		}
		return p.id == propWillDelay || isSender(p)
	}), stamp...)
	if delay = min(delay, expiry); delay > 0 {
		c.props = appendU32Prop(c.props, propWillDelay, delay)
	}
	return &c
}
