package mqtt

import (
	"context"
	"fmt"
	"time"
)

// The shim serves an MQTT 5 client on an engine that speaks MQTT 3.1.1. CONNACK
// says what is missing: subscription identifiers and shared subscriptions. The
// properties of messages have no place in 3.1.1 and are lost;
// docs/protocols/mqtt.md lists what that means.

// shimAliasMax is the Topic Alias Maximum: a device publishes to few topics, and
// each alias keeps one in memory.
const shimAliasMax = 16

// engineConnect is the CONNECT for the engine. The device's secret stays here.
func (x *session) engineConnect() connect {
	c := *x.connect
	if x.level == 4 {
		c.keepAlive = 0 // the gateway enforces it, and answers the pings
	}
	if x.shim() {
		c.cleanStart = c.cleanStart && c.sessionExpiry == 0
	}
	if x.level == 5 {
		c.will = c.will.stamped(x.stamp)
		c.props = keepProperties(c.props, pktConnect, func(p property) bool {
			switch p.id {
			case propAuthMethod, propAuthData, propRequestResponse:
				return true // the gateway's business
			}
			return p.id == propSessionExpiry && x.ephemeral
		})
	}
	return c
}

// maxGrowth is what two length fields may grow by when the sender's name comes in.
const maxGrowth = 4

// shimConnackProps tells the client what it gets (MQTT 5, 3.2.2.3).
func (x *session) shimConnackProps() []byte {
	b := appendU16Prop(nil, propReceiveMaximum, maxPending)
	b = appendU32Prop(b, propMaxPacketSize, uint32(x.srv.Limits.MaxPacket)) //nolint:gosec // a small limit
	b = appendU16Prop(b, propTopicAliasMax, shimAliasMax)
	b = append(b, propWildcardSubs, 1, propSubIDs, 0, propSharedSubs, 0)
	if k := uint16(x.keepAlive * 2 / 3 / time.Second); k != x.connect.keepAlive { //nolint:gosec // bounded by MaxKeepAlive
		b = appendU16Prop(b, propServerKeepAlive, k)
	}
	return x.ownConnackProps(b)
}

// ownConnackProps adds what the gateway answers for, whatever the engine.
func (x *session) ownConnackProps(b []byte) []byte {
	c := x.connect
	if x.assigned != "" {
		b = appendTextProp(b, propAssignedID, x.assigned)
	}
	if x.ephemeral {
		b = appendU32Prop(b, propSessionExpiry, 0)
	}
	if c.wantsInbox {
		b = appendTextProp(b, propResponseInfo, x.inbox())
	}
	if c.hasMethod {
		b = appendAuthProps(b, c.method, x.exchange.answer)
	}
	return b
}

// passConnackProps takes from the CONNACK of an MQTT 5 engine what the gateway
// must enforce, and puts in what it is responsible for.
func (x *session) passConnackProps(block []byte) ([]byte, error) {
	size, grown := uint32(x.srv.Limits.MaxPacket), uint32(len(x.stamp)+maxGrowth) //nolint:gosec // small
	var out []byte
	x.aliasMax = 0
	err := walkProperties(block, pktConnack, func(p property) error {
		switch p.id {
		case propMaxPacketSize:
			size = min(size, max(p.number/2, p.number-min(p.number, grown))) // it must hold the sender's name too
			return nil
		case propAssignedID, propResponseInfo, propAuthMethod, propAuthData:
			return nil
		case propSessionExpiry:
			if x.ephemeral {
				return nil
			}
			x.expiry = p.number
		case propTopicAliasMax:
			x.aliasMax = uint16(p.number) //nolint:gosec // a two-byte property
		case propServerKeepAlive:
			x.keepAlive = x.allowedSilence(time.Duration(p.number) * time.Second)
		}
		out = append(out, p.raw...)
		return nil
	})
	x.in.max = min(x.in.max, int(size))
	return x.ownConnackProps(appendU32Prop(out, propMaxPacketSize, size)), engineError(err)
}

// engineRefusal is the answer to a device whose session the engine did not take.
func (x *session) engineRefusal(ctx context.Context, err error) error {
	if x.ended() {
		return errEnded
	}
	x.srv.count.engineFailed.Add(1)
	x.srv.Log.WarnContext(ctx, "the engine did not take a session", "device", x.info.Device, "error", err)
	return refuse(connUnavailable, ServerUnavailable, "the message engine is not available")
}

// engineCode is the answer to a device that the engine refused with a code. The
// engine saw the gateway's credentials, so a refusal of those is ours to
// explain; any other is the device's.
func (x *session) engineCode(ctx context.Context, a *connack) error {
	r := Refusal{connUnavailable, ServerUnavailable}
	switch code := a.code; {
	case x.level == 4 && code == connBadClientID:
		r = Refusal{connBadClientID, BadClientID}
	case x.level == 5:
		switch Reason(code) {
		case BadUserOrPassword, NotAuthorized, Banned, BadAuthenticationMethod:
		default:
			r.V5 = Reason(code)
		}
	}
	x.srv.count.engineFailed.Add(1)
	x.srv.Log.WarnContext(ctx, "the engine refused a session", "device", x.info.Device, "code", a.code)
	return refuse(r.V3, r.V5, fmt.Sprintf("the message engine refused the session with code %d", a.code))
}
