package mqtt

import (
	"context"
	"errors"

	countersign "github.com/countersign-iot/countersign"
)

// authenticate goes through the exchange that CONNECT asks for, up to what is to be
// said with CONNACK. An exchange that failed is no error here: the Gatekeeper has
// the last word on it.
func (x *session) authenticate(ctx context.Context) error {
	c := x.connect
	begun, err := x.srv.Gatekeeper.Exchange(ctx, x.asks(), c.method)
	if countersign.CodeOf(err) == countersign.BadRequest {
		return refuse(connNotAuthorized, BadAuthenticationMethod, err.Error())
	} else if err != nil {
		return refuseFor(countersign.CodeOf(err), "the authentication could not begin")
	}
	x.exchange = &exchange{Exchange: begun}
	_ = x.conn.SetReadDeadline(x.now().Add(x.srv.Limits.Connect)) // once more for all steps
	for data := c.data; ; {
		more, err := x.exchange.step(ctx, data)
		if err != nil || x.exchange.done || x.exchange.failed != nil {
			return err
		}
		if err := x.sendAuth(ContinueAuthentication, more); err != nil {
			return err
		}
		if err := x.down.flush(); err != nil {
			return err
		}
		f, err := x.in.next()
		if err != nil {
			return err
		}
		if f.kind() == pktDisconnect {
			return errors.New("the client gave up its authentication")
		}
		if f.kind() != pktAuth { // [MQTT-3.1.2-30]
			return breach(ProtocolError, "packet type %d before CONNACK", f.kind())
		}
		a, err := x.readAuth(f)
		if err != nil {
			return err
		}
		if a.code != ContinueAuthentication {
			return breach(ProtocolError, "AUTH with reason %#x within an exchange", byte(a.code))
		}
		data = a.data
	}
}

func (x *session) readAuth(f frame) (auth, error) {
	if err := f.checkFlags(5); err != nil {
		return auth{}, err
	}
	a, err := parseAuth(f)
	if err == nil && a.method != x.connect.method { // [MQTT-4.12.0-5]
		return a, breach(ProtocolError, "AUTH with another method than CONNECT")
	}
	return a, err
}

func (x *session) sendAuth(code Reason, data []byte) error {
	p := auth{code, x.connect.method, data}.encode()
	if x.tooLarge(len(p)) {
		return breach(PacketTooLarge, "the authentication needs packets of %d bytes", len(p))
	}
	return x.down.send(p)
}

// errReauth ends a session whose device failed to authenticate again.
var errReauth = errors.New("re-authentication failed")

// deviceAuth takes a step of an authentication within the session (MQTT 5, 4.12.1).
// What the session may do, and its end, stay as they were at connect.
func (x *reader) deviceAuth(ctx context.Context, f frame) error {
	if x.connect.level < 5 || !x.connect.hasMethod { // [MQTT-4.12.0-7]
		return breach(ProtocolError, "AUTH in a session that was opened without")
	}
	a, err := x.readAuth(f)
	if err != nil {
		return err
	}
	switch {
	case a.code == ReAuthenticate && x.exchange == nil:
		now := x.now()
		if now.Before(x.reauthAt) {
			return breach(QuotaExceeded, "authentication more often than every %v", reauthEvery)
		}
		x.reauthAt = now.Add(reauthEvery)
		begun, err := x.srv.Gatekeeper.Exchange(ctx, x.asks(), a.method)
		if err != nil {
			return errReauth
		}
		x.exchange = &exchange{Exchange: begun}
	case a.code == ContinueAuthentication && x.exchange != nil:
	default:
		return breach(ProtocolError, "AUTH with reason %#x out of turn", byte(a.code))
	}
	e := x.exchange
	more, err := e.step(ctx, a.data)
	if err != nil {
		return err
	}
	if !e.done && e.failed == nil {
		return x.sendAuth(ContinueAuthentication, more)
	}
	ask := x.asks()
	ask.Exchange, x.exchange = e.Exchange, nil
	v := x.srv.Gatekeeper.Admit(ctx, ask)
	if !v.Allow || e.failed != nil || v.Device != x.info.Device {
		return errReauth
	}
	return x.sendAuth(Success, e.answer)
}
