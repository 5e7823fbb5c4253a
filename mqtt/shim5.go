package mqtt

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/countersign-iot/countersign/topics"
)

// The shim serves an MQTT 5 client on an engine that speaks MQTT 3.1.1. CONNACK
// says what is missing: subscription identifiers and shared subscriptions. The
// properties of messages have no place in 3.1.1: where the gateway may, it wraps
// them up, else they are lost. docs/protocols/mqtt.md lists what that means.

const (
	// maxAliases is the Topic Alias Maximum, each way, whatever the engine and the
	// client would take: a device publishes to few topics, and each alias keeps one
	// in memory.
	maxAliases = 16
	// maxAliasOctets bounds the topics of a device's aliases: 16 of the longest that
	// the embedded engine takes.
	maxAliasOctets = maxAliases * natsMaxTopic
)

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
		c.will = c.will.stamped(x.stamp, c.sessionExpiry)
		c.props = keepProperties(c.props, pktConnect, func(p property) bool {
			switch p.id {
			case propAuthMethod, propAuthData, propRequestResponse:
				return true // the gateway's business
			case propMaxPacketSize:
				return true // see below
			case propTopicAliasMax:
				return true // see below
			}
			return p.id == propSessionExpiry && x.ephemeral
		})
		if c.aliasMax > 0 && c.maxPacket == 0 { // what fit calls too large must teach no alias
			c.props = appendU16Prop(c.props, propTopicAliasMax, c.aliasMax)
		}
		if c.maxPacket > 0 {
			c.props = appendU32Prop(c.props, propMaxPacketSize, uint32(min(uint64(c.maxPacket)+maxStamp, math.MaxUint32)))
		}
	}
	return c
}

// maxGrowth is what two length fields may grow by when the sender's name comes in.
const maxGrowth = 4

// shimConnackProps tells the client what it gets (MQTT 5, 3.2.2.3).
func (x *session) shimConnackProps() []byte {
	b := appendU16Prop(nil, propReceiveMaximum, uint16(x.flight))           //nolint:gosec // at most maxPending
	b = appendU32Prop(b, propMaxPacketSize, uint32(x.srv.Limits.MaxPacket)) //nolint:gosec // a small limit
	b = appendU16Prop(b, propTopicAliasMax, maxAliases)
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
			x.aliasMax = min(maxAliases, uint16(p.number)) //nolint:gosec // a two-byte property
			out = appendU16Prop(out, propTopicAliasMax, x.aliasMax)
			return nil
		case propReceiveMaximum:
			x.flight = min(x.flight, int(p.number))
			return nil
		case propServerKeepAlive:
			x.keepAlive = x.allowedSilence(time.Duration(p.number) * time.Second)
		}
		out = append(out, p.raw...)
		return nil
	})
	x.in.max = min(x.in.max, int(size))
	out = appendU16Prop(out, propReceiveMaximum, uint16(x.flight)) //nolint:gosec // at most maxPending
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

// retainedAsk is a filter of a SUBSCRIBE and whether the retained messages that
// match it are asked for (MQTT 5, 3.8.3.1). An engine of 3.1.1 always sends them,
// with RETAIN set and right behind the SUBACK.
type retainedAsk struct {
	filter string
	wanted bool
}

func (x *session) askRetained(p *subscribe) {
	var asks []retainedAsk
	some := false
	for _, s := range p.filters {
		handling := s.options >> 4 & 3
		_, have := x.filters[s.filter]
		wanted := handling == 0 || handling == 1 && !have
		some = some || !wanted
		asks = append(asks, retainedAsk{s.filter, wanted})
	}
	if !some {
		asks = nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.asking) < maxPending { // more is a breach, see remember
		put(&x.asking, p.id, asks)
	}
}

// wantsRetained tells whether the SUBSCRIBE that was answered last asks for the
// retained message of a topic.
func (x *session) wantsRetained(topic string) bool {
	refused := false
	for _, a := range x.asked {
		if topics.Covers(a.filter, topic) {
			if a.wanted {
				return true
			}
			refused = true
		}
	}
	return !refused
}

// maxExpiries bounds the sessions whose end is remembered, to about 10 MiB. What is
// forgotten is kept until its queue is natsConsumerIdle old.
const maxExpiries = 65_536

// forever is the Session Expiry Interval of a session that does not expire.
const forever = 0xFFFFFFFF

// keepUntil notes when a session that ends now is to be forgotten.
func (s *Server) keepUntil(key string, expiry uint32, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.expires, key)
	if expiry == 0 || expiry == forever {
		return
	}
	if len(s.expires) >= maxExpiries {
		for k := range s.expires { // any
			delete(s.expires, k)
			break
		}
	}
	s.expires[key] = now.Add(time.Duration(expiry) * time.Second)
}

// expired tells whether the session that the engine may have is past its end.
func (s *Server) expired(key string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	end, ok := s.expires[key]
	delete(s.expires, key)
	return ok && !now.Before(end)
}

// claimKey is the client identifier within its device: a device id may hold a
// colon, so device "a" may call itself "a:b" while there is a device "a:b". Neither
// name holds U+0000.
func (x *session) claimKey() string { return x.info.Device + "\x00" + x.info.ClientID }

// leaveUnfinished notes that a session ended with messages unacknowledged.
func (s *Server) leaveUnfinished(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unended) < maxExpiries { // for the others the engine's own clock will do
		s.unended[key] = struct{}{}
	}
}

// unfinished tells whether it did, once.
func (s *Server) unfinished(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return take(s.unended, key)
}
