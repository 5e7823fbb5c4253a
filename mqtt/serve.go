package mqtt

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net"
	"os"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

func (s *Server) init() {
	s.once.Do(func() {
		s.Limits = s.Limits.withDefaults()
		s.Gateway = cmp.Or(s.Gateway, "mqtt")
		s.clients = map[string]*claim{}
		s.seed = maphash.MakeSeed()
		if s.Guard == nil {
			s.Guard = &edge.Guard{Now: s.Now}
		}
		for _, g := range []*edge.Gate{&s.gate, &s.web} {
			g.Name, g.Guard, g.TLS, g.Limits, g.Log, g.Now = s.Gateway, s.Guard, s.TLS.Clone(), s.Caps, s.Log, s.Now
		}
		s.gate.TLS.NextProtos, s.gate.Handle = []string{alpnMQTT, alpnAWS}, s.handle
		s.web.Name += "-web"
		s.web.TLS.ClientAuth = tls.NoClientCert
		s.web.TLS.NextProtos, s.web.Handle = []string{"http/1.1"}, s.handleWeb // a WebSocket begins as HTTP/1.1 (RFC 6455, 4)
	})
}

// Serve accepts connections from ln, which speaks plain TCP, until ctx ends or
// Close is called. It closes ln. The error is nil after ctx or Close.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.init()
	return s.gate.Serve(ctx, ln)
}

// Close stops accepting, ends all sessions of this gateway and waits for them.
// What is left when ctx ends is aborted. Broker stays open.
func (s *Server) Close(ctx context.Context) error {
	s.init()
	s.closing.Store(true)
	s.gate.Stop()
	s.web.Stop()
	s.Index.CloseGateway(s.Gateway)
	return errors.Join(s.gate.Close(ctx), s.web.Close(ctx))
}

// Stats counts what the server saw.
func (s *Server) Stats() Stats {
	s.init()
	c, total, web := &s.count, s.gate.Stats(), s.web.Stats()
	return Stats{
		Stats: total.Plus(web), NoUpgrade: c.upgradeFailed.Load(),
		Connects: c.connects.Load(), Refused: c.refused.Load(),
		Opened: c.opened.Load(), Closed: c.closed.Load(),
		Published: c.published.Load(), Delivered: c.delivered.Load(),
		Denied: c.denied.Load(), Malformed: c.malformed.Load(), EngineFailed: c.engineFailed.Load(),
		Unread: c.unread.Load(), Slowed: c.slowed.Load(), OverBudget: c.overBudget.Load(),
	}
}

// open gets the session onto its back and greets the device.
func (x *session) open(ctx context.Context) error {
	c := x.connect
	x.expiry = c.sessionExpiry
	x.stamp = stampOf(x.info.Device, x.info.Fleet)
	x.maxFlight = maxPending
	x.aliasMax = maxAliases
	c.aliasMax = min(c.aliasMax, maxAliases)
	x.keepAlive = time.Duration(c.keepAlive) * time.Second * 3 / 2 // [MQTT-3.1.2-22]
	if x.srv.Relay != nil {
		x.back = &remote{session: x}
	} else {
		x.back = newLocal(x)
	}
	answer, err := x.back.open(ctx)
	if err != nil {
		return err
	}
	if c.level == levelOld {
		answer.present = false // the bit is reserved
	}
	p := answer.encode(c.level)
	if x.tooLarge(len(p)) {
		return refuse(0, PacketTooLarge, fmt.Sprintf("a CONNACK of %d octets is over the client's Maximum Packet Size of %d", len(p), c.maxPacket))
	}
	// After the back has it, so that a cut which came meanwhile is seen: send looks.
	if err := x.down.send(p); err != nil {
		return err
	}
	return x.down.flush()
}

// run serves the session until one side is gone, then closes both and reports it.
func (x *session) run(ctx context.Context) {
	s := x.srv
	// A will costs memory for the session's life, the back has it now.
	x.connect.will, x.connect.props, x.connect.data, x.exchange = nil, nil, nil, nil
	x.down.bound(int(min(x.budget.Unread, math.MaxInt32)), x.downFailed)
	s.count.opened.Add(1)
	s.Gatekeeper.Opened(x.info)
	x.back.start()
	x.finishUp((&reader{session: x}).runUp(ctx))

	x.sayGoodbye()
	x.back.close(ctx)
	if x.ended() { // who ended it has the last words, then closes the socket
		<-x.live.Done()
	}
	x.acts.mu.Lock()
	suppressed := x.acts.suppressed
	x.acts.mu.Unlock()
	if suppressed > 0 {
		s.Log.InfoContext(ctx, "denied acts not reported one by one", "device", x.info.Device, "session", x.info.ID, "count", suppressed)
	}
	s.accounts.leave(x.info.Device, x.account)
	s.count.closed.Add(1)
	s.Gatekeeper.Closed(x.info, x.ending)
}

// finishUp names the end that runUp came to.
func (x *session) finishUp(err error) {
	switch {
	case x.cleanLeave:
		x.end(ending(countersign.EndClientLeft, "client left"), nil)
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.end(ending(countersign.EndSilent, "keep-alive expired"), x.disconnect(KeepAliveTimeout, "keep alive expired"))
	case errors.Is(err, errReauth):
		x.end(ending(countersign.EndReauth, "re-authentication failed"), x.disconnect(NotAuthorized, "the device could not authenticate again"))
	case errors.Is(err, errFlood):
		x.overBudget(countersign.BudgetPublishes, int64(x.budget.Publishes), MessageRateTooHigh)
	default:
		x.endOn(err)
	}
}
