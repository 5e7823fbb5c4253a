package hook

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
)

// question is a client that connects, as the broker describes it.
type question struct {
	client, user string
	password     []byte // nil: none was sent
	peer         []*x509.Certificate
	verified     string // name in a certificate that the broker has verified by itself
	remote       netip.AddrPort
	protocol     string
	unfit        string // why this cannot be decided at all; empty if it can
}

// connect decides whether a client is admitted, and keeps the verdict for later questions.
func (s *Server) connect(ctx context.Context, h *Hook, q question) countersign.Verdict {
	if q.unfit != "" {
		return countersign.Verdict{Code: countersign.BadRequest, Reason: q.unfit}
	}
	c := countersign.Connection{
		Gateway: h.gateway(), Remote: q.remote, Protocol: q.protocol, ClientID: q.client, Username: q.user,
	}
	switch {
	case len(q.peer) > 0:
		c.Peer = q.peer
	case q.password != nil:
		c.Password = q.password
	case q.verified != "" && !h.Vouch:
		return countersign.Verdict{
			Code: countersign.Unauthenticated, Reason: "the broker sends only a name, and the hook does not let it vouch for devices",
		}
	case q.verified != "":
		c.Vouched, c.Username = h.Name, q.verified
	}
	keys := []key{{h.Name, "", q.user}} // for questions that name the user alone
	if q.client != "" {
		keys = append([]key{{h.Name, q.client, q.user}}, keys...)
	}
	v := s.decideFor(ctx, c, keys...)
	if !v.Allow {
		return v
	}
	if q.client == "" {
		s.cache.setUnnamed(keys[0])
	}
	if err := s.keep(ctx, h, c, v, keys); err != nil {
		// The decision needs no write, so a full disk ends no access. A session that is not
		// on record is refused wherever it is not in memory.
		s.Log.WarnContext(ctx, "session of a broker not recorded", "hook", h.Name, "device", v.Device, "error", err)
	}
	return v
}

// standing returns the verdict with which a session was admitted, if the record still
// supports it. A session that is neither in memory nor on record is refused, also where
// the hook lets the broker vouch: the name alone does not show what the session depends on.
func (s *Server) standing(ctx context.Context, h *Hook, k key) countersign.Verdict {
	k.hook = h.Name
	e, ok := s.cache.get(k)
	if !ok {
		var err error
		if e, ok, err = s.recall(ctx, h, k); err != nil {
			return countersign.Verdict{Code: countersign.Unavailable, Reason: "the record of the session cannot be read now"}
		}
		if !ok { // perhaps it could not be recorded
			e, ok = s.cache.unnamed(k)
		}
	}
	switch {
	case ok && e.cut:
		return countersign.Verdict{Code: countersign.NotAllowed, Reason: "the session has ended"}
	case ok && s.fresh(e):
		return e.verdict
	case !ok: // a broker vouches for a client that connects; what that depended on may have ended since
		return countersign.Verdict{Code: countersign.NotAllowed, Reason: "the session is not known here: it must connect again"}
	}
	c := countersign.Connection{
		Gateway: h.gateway(), Remote: e.conn.Remote, Protocol: e.conn.Protocol, ClientID: k.client, Username: e.verdict.Device, Vouched: h.Name,
	}
	if e.conn.Vouched == "" {
		return s.decideAgain(ctx, c, e, k)
	}
	return s.decideFor(ctx, c, k)
}

// recall returns what is on record of a session that is not in memory: it connected
// through another node, before a restart, or was dropped to make room for newer ones.
// The verdict's permissions are not recorded, so it must be decided again.
func (s *Server) recall(ctx context.Context, h *Hook, k key) (entry, bool, error) {
	if s.Record == nil {
		return entry{}, false, nil
	}
	was, err := s.Record.Recall(ctx, h.gateway(), countersign.BrokerName{Client: k.client, User: k.user})
	if countersign.CodeOf(err) == countersign.NotFound {
		return entry{}, false, nil
	}
	if err != nil {
		s.Log.WarnContext(ctx, "session of a broker not read", "hook", h.Name, "error", err)
		return entry{}, false, err
	}
	e := entry{stale: true, asked: was.Since, verdict: countersign.Verdict{
		Allow: true, Device: was.Device, Fleet: was.Fleet, Cert: was.Cert, Credential: was.Credential, NotAfter: was.NotAfter,
	}}
	e.conn.Protocol = was.Protocol
	if kind, by, _ := strings.Cut(was.Credential, ":"); kind == "vouched" {
		e.conn.Vouched = by
	}
	return e, true, nil
}

// keep records an admitted session under the names that the broker may use in questions.
func (s *Server) keep(ctx context.Context, h *Hook, c countersign.Connection, v countersign.Verdict, keys []key) error {
	if s.Record == nil {
		return nil
	}
	names := make([]countersign.BrokerName, 0, len(keys))
	for _, k := range keys {
		names = append(names, countersign.BrokerName{Client: k.client, User: k.user})
	}
	return s.Record.Keep(ctx, countersign.Session{
		Device: v.Device, Fleet: v.Fleet, Cert: v.Cert, Credential: v.Credential, Gateway: h.gateway(),
		Protocol: c.Protocol, ClientID: c.ClientID, Since: s.Now(), NotAfter: v.NotAfter,
	}, names...)
}

// admit decides again only if no fresh verdict is kept under k.
func (s *Server) admit(ctx context.Context, k key, c countersign.Connection) countersign.Verdict {
	if e, ok := s.cache.get(k); ok && !e.cut && s.fresh(e) {
		return e.verdict
	}
	return s.decideFor(ctx, c, k)
}

func (s *Server) fresh(e entry) bool {
	now := s.Now()
	return !e.stale && (s.Live == nil || s.Live()) && now.Sub(e.asked) < maxAge &&
		(e.verdict.NotAfter.IsZero() || now.Before(e.verdict.NotAfter))
}

// decideFor asks the Gatekeeper and keeps an admission under keys. It tries again if a
// cut came between the decision and its record, since that cut would otherwise be lost.
func (s *Server) decideFor(ctx context.Context, c countersign.Connection, keys ...key) countersign.Verdict {
	for range maxTries {
		mark := s.cache.mark()
		v := s.Gatekeeper.Admit(ctx, c)
		if !v.Allow {
			return v
		}
		if h := s.hook(keys[0].hook); h.byUser() && c.Username != v.Device && countersign.IsDeviceID(c.Username) {
			return countersign.Verdict{
				Code: countersign.SubjectMismatch, Reason: "the user name is not that of the client, and the broker would use it as a device's",
			}
		}
		if s.cache.put(keys, entry{verdict: v, conn: unproven(c), asked: s.Now()}, mark) {
			s.Kicker.settle(keys[0].hook, v.Device)
			return v
		}
	}
	return countersign.Verdict{Code: countersign.Unavailable, Reason: "the device's state is changing; try again"}
}

// decideAgain decides again on a session that was admitted with a credential of its own:
// it still depends on that, and ends with it.
func (s *Server) decideAgain(ctx context.Context, c countersign.Connection, was entry, k key) countersign.Verdict {
	mark := s.cache.mark()
	c.Rests = &countersign.Session{
		Device: was.verdict.Device, Fleet: was.verdict.Fleet, Cert: was.verdict.Cert, Credential: was.verdict.Credential,
		NotAfter: was.verdict.NotAfter, Remote: was.conn.Remote,
	}
	v := s.Gatekeeper.Admit(ctx, c)
	if !v.Allow {
		return v
	}
	v.Cert, v.Credential = was.verdict.Cert, was.verdict.Credential
	if end := was.verdict.NotAfter; !end.IsZero() && (v.NotAfter.IsZero() || end.Before(v.NotAfter)) {
		v.NotAfter = end
	}
	now := s.Now()
	if !v.NotAfter.IsZero() && now.After(v.NotAfter) {
		return countersign.Verdict{Code: countersign.NotAllowed, Reason: "the session has ended"}
	}
	if !s.cache.put([]key{k}, entry{verdict: v, conn: was.conn, asked: now}, mark) {
		return countersign.Verdict{Code: countersign.Unavailable, Reason: "the device's state is changing; try again"}
	}
	return v
}

// unproven returns c without its proof of identity.
func unproven(c countersign.Connection) countersign.Connection {
	c.Peer, c.Password, c.Exchange = nil, nil, nil
	return c
}

// allowed answers a question about a topic, and reports a refusal to the Gatekeeper.
func (s *Server) allowed(ctx context.Context, h *Hook, k key, a countersign.Act) bool {
	v := s.standing(ctx, h, k)
	if !v.Allow {
		return false
	}
	if a.Allowed = may(v.Permissions, a.Action, a.Topic); !a.Allowed {
		s.judged(h, k, v, a)
	}
	return a.Allowed
}

func (s *Server) judged(h *Hook, k key, v countersign.Verdict, a countersign.Act) {
	if s.denials.allow(key{h.Name, k.client, k.user}, s.Now()) {
		s.Gatekeeper.Judged(s.session(h, k, v), a)
	}
}

// session describes a session at a broker to the Gatekeeper.
func (s *Server) session(h *Hook, k key, v countersign.Verdict) countersign.Session {
	e, _ := s.cache.get(key{h.Name, k.client, k.user})
	return countersign.Session{
		ID: h.gateway() + ":" + k.client, Device: v.Device, Fleet: v.Fleet, Cert: v.Cert, Credential: v.Credential, Scope: v.Scope,
		Gateway: h.gateway(), Protocol: e.conn.Protocol, ClientID: k.client, Remote: e.conn.Remote, Since: s.Now(), NotAfter: v.NotAfter,
	}
}

// opened reports a session that has begun, according to the broker.
func (s *Server) opened(h *Hook, client, user string) {
	k := key{h.Name, client, user}
	e, ok := s.cache.get(k)
	if !ok {
		return
	}
	if session := s.session(h, k, e.verdict); s.cache.open(k, session) {
		s.Gatekeeper.Opened(session)
	}
}

// endCodes maps the reasons of brokers to codes.
var endCodes = map[string]countersign.EndCode{
	"normal": countersign.EndClientLeft, "client left": countersign.EndClientLeft,
	"takenover": countersign.EndTakenOver, "takeovered": countersign.EndTakenOver, "discarded": countersign.EndTakenOver,
	"keepalive_timeout": countersign.EndSilent, "kicked": countersign.EndCut,
}

// atBroker returns the ending for the reason that a broker reports.
func atBroker(reason string) countersign.Ending {
	code, ok := endCodes[reason]
	if !ok {
		code = countersign.EndLost
	}
	return countersign.Ending{Code: code, Reason: "broker: " + plain(reason)}
}

// closed records the end of a session that the broker reports.
func (s *Server) closed(ctx context.Context, h *Hook, client, user string, end countersign.Ending) {
	if session := s.cache.ended(key{h.Name, client, user}); session != nil {
		s.Gatekeeper.Closed(*session, end)
	}
	if s.Record == nil || end.Code == countersign.EndTakenOver { // its successor is on record under the same name
		return
	}
	if err := s.Record.End(ctx, h.gateway(), countersign.BrokerName{Client: client, User: user}); err != nil {
		s.Log.WarnContext(ctx, "ended session of a broker not forgotten", "hook", h.Name, "error", err) // its age ends it
	}
}

const (
	// maxChain bounds the certificates of a path that are read: a leaf, intermediates,
	// and some to spare.
	maxChain = 8
	// corrupted is the refusal of a password that a broker which keeps passwords as text has changed.
	corrupted = "the password has octets that are not UTF-8, and the broker does not pass them on unchanged"
)

var errNoCertificate = errors.New("no certificate in PEM")

// parseChain reads certificates in PEM, leaf first. That TLS proved possession of the
// leaf's key is up to the caller to know.
func parseChain(text []byte) (chain []*x509.Certificate, err error) {
	for rest := text; len(chain) < maxChain; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errNoCertificate
	}
	return chain, nil
}

// setChain sets certificates in PEM.
func (q *question) setChain(text string) {
	var err error
	if q.peer, err = parseChain([]byte(text)); err != nil {
		q.unfit = "the certificate cannot be read"
	}
}

// setPassword sets one that was sent as text. If the broker replaced octets in it, it is not
// what the device sent, and the refusal must say so, because the cause is hard to find.
func (q *question) setPassword(text string) {
	q.password = []byte(text)
	if !utf8.ValidString(text) || bytes.ContainsRune(q.password, utf8.RuneError) {
		q.unfit = corrupted
	}
}

// address parses the device's address as a broker writes it; zero if it cannot be
// parsed. It never is the broker's own: wrong secrets would block that for all.
func address(host string, port uint16) netip.AddrPort {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Unmap().WithZone(""), port)
}
