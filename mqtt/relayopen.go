package mqtt

import (
	"context"
	"fmt"
	"math"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// open connects to the broker and passes on CONNECT. The device's secret stays here.
func (r *remote) open(ctx context.Context) (*connack, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	r.level = max(r.connect.level, 4) // nothing of MQTT 3.1 but CONNECT is another
	answer, err := r.dial(ctx)
	if err != nil {
		return nil, r.backFailed(ctx, err)
	}
	if answer.code != 0 {
		return nil, r.refusedBy(ctx, answer)
	}
	if r.level == 5 {
		if answer.props, err = r.connackProps(answer.props); err != nil {
			return nil, r.backFailed(ctx, err)
		}
	}
	return answer, nil
}

// dial opens the broker's side and reads its answer.
func (r *remote) dial(ctx context.Context) (*connack, error) {
	conn, err := r.srv.Relay.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := r.ask()
	r.srv.Relay.shows(&c, r.info)
	r.conn = conn
	r.up = outbox{dst: conn, ended: r.ended, now: r.now, stall: r.srv.Limits.Stall}
	r.engine = frameReader{src: conn, max: r.srv.Limits.MaxPacket + maxConnect}
	_ = conn.SetReadDeadline(r.now().Add(engineTimeout))
	if err := r.up.send(c.encode(r.level)); err != nil {
		return nil, err
	}
	if err := r.up.flush(); err != nil {
		return nil, err
	}
	f, err := r.engine.next()
	if err != nil {
		return nil, fmt.Errorf("couldn't read the broker's CONNACK: %w", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	return parseConnack(f, r.level)
}

// ask is the CONNECT for the broker.
func (r *remote) ask() connect {
	c := *r.connect
	if r.level < 5 {
		c.keepAlive = 0 // the gateway enforces it, and answers the pings
		return c
	}
	c.will = c.will.stamped(r.stamp, c.sessionExpiry)
	c.props = keepProperties(c.props, pktConnect, func(p property) bool {
		switch p.id {
		case propAuthMethod, propAuthData, propRequestResponse:
			return true // the gateway's business
		case propMaxPacketSize, propTopicAliasMax:
			return true // see below
		}
		return p.id == propSessionExpiry && r.ephemeral
	})
	// With a Maximum Packet Size a message that is dropped might be the one that sets an alias.
	if c.aliasMax > 0 && c.maxPacket == 0 {
		c.props = appendU16Prop(c.props, propTopicAliasMax, c.aliasMax)
	}
	if c.maxPacket > 0 {
		c.props = appendU32Prop(c.props, propMaxPacketSize, uint32(min(uint64(c.maxPacket)+maxStamp, math.MaxUint32)))
	}
	return c
}

// maxGrowth is what two length fields may grow by when the sender's name comes in.
const maxGrowth = 4

// connackProps takes from the CONNACK of an MQTT 5 broker what the gateway must enforce,
// and puts in what it is responsible for.
func (r *remote) connackProps(block []byte) ([]byte, error) {
	size, grown := uint32(r.srv.Limits.MaxPacket), uint32(len(r.stamp)+maxGrowth) //nolint:gosec // small
	var out []byte
	r.aliasMax = 0
	err := walkProperties(block, pktConnack, func(p property) error {
		switch p.id {
		case propMaxPacketSize:
			size = min(size, max(p.number/2, p.number-min(p.number, grown))) // it must hold the sender's name too
			return nil
		case propAssignedID, propResponseInfo, propAuthMethod, propAuthData:
			return nil
		case propSessionExpiry:
			if r.ephemeral {
				return nil
			}
			r.expiry = p.number
		case propTopicAliasMax:
			r.aliasMax = min(maxAliases, uint16(p.number)) //nolint:gosec // a two-byte property
			out = appendU16Prop(out, propTopicAliasMax, r.aliasMax)
			return nil
		case propReceiveMaximum:
			r.maxFlight = min(r.maxFlight, int32(p.number)) //nolint:gosec // a two-byte property
			return nil
		case propServerKeepAlive:
			r.keepAlive = time.Duration(p.number) * time.Second * 3 / 2
		}
		out = append(out, p.raw...)
		return nil
	})
	r.in.max = min(r.in.max, int(size))
	out = appendU16Prop(out, propReceiveMaximum, uint16(r.maxFlight)) //nolint:gosec // at most maxPending
	return r.ownConnackProps(appendU32Prop(out, propMaxPacketSize, size)), engineError(err)
}

// refusedBy is the answer to a device that the broker refused with a code. The
// broker saw the gateway's credentials, so a refusal of those is ours to
// explain; any other is the device's.
func (r *remote) refusedBy(ctx context.Context, a *connack) error {
	answer := Refusal{connUnavailable, ServerUnavailable}
	switch code := a.code; {
	case r.level < 5 && code == connBadClientID:
		answer = Refusal{connBadClientID, BadClientID}
	case r.level == 5:
		switch Reason(code) {
		case BadUserOrPassword, NotAuthorized, Banned, BadAuthenticationMethod:
		default:
			answer.V5 = Reason(code)
		}
	}
	r.srv.count.engineFailed.Add(1)
	r.srv.Log.WarnContext(ctx, "the engine refused a session", "device", r.info.Device, "code", a.code)
	return refuse(answer.V3, answer.V5, fmt.Sprintf("the message engine refused the session with code %d", a.code))
}

func (r *remote) start() {
	r.gone = make(chan struct{})
	go func() {
		defer close(r.gone)
		r.finishDown(r.runDown())
	}()
}

// close closes the broker's side and waits for runDown. A cut device's will must
// not be published, so the broker receives DISCONNECT.
func (r *remote) close(context.Context) {
	_ = r.conn.SetWriteDeadline(r.now().Add(lingerTimeout))
	if e, ok := r.live.Ended(); ok {
		r.up.last(func(bool) []byte {
			if e.Code == countersign.EndCut {
				return append(r.closeInbox(), leave(true)...)
			}
			return r.closeInbox()
		})
	} else if p := r.closeInbox(); p != nil && !r.cleanLeave && r.up.send(p) == nil {
		_ = r.up.flush()
	}
	// The broker closes once it has dealt with the end. Waiting for that keeps the
	// order if the client comes again at once.
	_ = r.conn.SetReadDeadline(r.now().Add(lingerTimeout))
	r.closeWrite()
	// A device that reads nothing would hold down runDown. The side that ended the session
	// closes the socket in a moment, after the last words.
	if r.ended() {
		<-r.live.Done()
	} else {
		r.session.conn.Abort()
	}
	<-r.gone
	r.hangUp()
}

// abandon has the broker read DISCONNECT behind CONNECT: it may have that, answered or
// not, and a client that goes without DISCONNECT is one that was lost. So the connection
// stays until the broker has read it.
func (r *remote) abandon() {
	if r.conn == nil {
		return
	}
	_ = r.conn.SetDeadline(r.now().Add(lingerTimeout))
	r.up.last(leave)
	r.closeWrite()
	r.hangUp()
}

// leave is the DISCONNECT of a client whose will is not to be published.
// A broker that has not read CONNECT is sent nothing.
func leave(wrote bool) []byte {
	if !wrote {
		return nil
	}
	return []byte{pktDisconnect << 4, 0}
}
