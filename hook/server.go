package hook

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/countersign-iot/countersign"
)

// Kind is the protocol of a hook.
type Kind string

// The kinds.
const (
	EMQX      Kind = "emqx"
	RabbitMQ  Kind = "rabbitmq"
	VerneMQ   Kind = "vernemq"
	Mosquitto Kind = "mosquitto" // asks nothing; its sessions are only ended
	NATS      Kind = "nats"      // asks over NATS
	Generic   Kind = "generic"
	Nginx     Kind = "nginx"
	Envoy     Kind = "envoy"
)

const (
	// maxBody bounds a question: the longest holds a chain of certificates and a
	// password of 64 KiB, both escaped.
	maxBody = 256 << 10
	// maxAsking bounds the questions that are decided at once, and so what a faulty broker
	// can take from other clients of the server.
	maxAsking = 512
	// askTime is how long a decision may take. Brokers give up after 5 s, and a
	// device that is refused tries again.
	askTime = 2 * time.Second
	// maxTries bounds how often a decision is made again because a cut came between.
	maxTries = 3
)

// Hook is one broker or proxy. At least one of Secret, Device and Networks must be set;
// a caller must match all that are set.
type Hook struct {
	Name     string
	Kind     Kind
	Secret   []byte         // as Bearer (RFC 6750), or as the password of Basic (RFC 7617)
	Device   string         // whose client certificate the caller must present
	Networks []netip.Prefix // that the caller comes from
	// Vouch accepts a device whose certificate the broker has verified by itself, and of
	// which it passes on only the name.
	Vouch bool
	// VHosts are RabbitMQ's virtual hosts that devices may use; empty: "/".
	VHosts []string
}

// gatewayPrefix begins the name of a gateway that is an external broker.
const gatewayPrefix = "hook:"

func (h *Hook) gateway() string { return gatewayPrefix + h.Name }

// byUser reports whether the broker identifies an admitted client by the user name that
// the client sent. A token, or a guest without a credential, proves another name than
// that, so the user name must not be a device's.
func (h *Hook) byUser() bool { return h != nil && (h.Kind == RabbitMQ || h.Kind == VerneMQ) }

// Answer is one answered question, for metrics.
type Answer struct {
	Hook     string
	Question string // connect, topic or session
	Allowed  bool
	Took     time.Duration
}

// Server answers questions over HTTP, under /hooks/<name>/, and those of Callout.
// Set its fields before its first question.
type Server struct {
	Gatekeeper countersign.Gatekeeper
	Hooks      []Hook
	Kicker     *Kicker // nil: no broker is made to disconnect clients
	// Live reports whether every change is notified at once, nil: it is; Observe is for
	// metrics, nil: none. Functions, because both belong to what a door may not know.
	Live    func() bool
	Observe func(Answer)
	// Record stores what sessions depend on where other nodes, and this one after a restart,
	// find it. If nil, a session that is not in memory must connect again.
	Record Record
	Log    *slog.Logger
	Now    func() time.Time

	cache   cache
	denials denials
	stopped stoppedQueue
	busy    atomic.Int64
	warned  rate.Sometimes // of unknown callers
}

// Record stores what sessions at brokers depend on. Package access implements it.
type Record interface {
	// Keep returns once the session is on record under each name.
	Keep(ctx context.Context, s countersign.Session, names ...countersign.BrokerName) error
	// Recall returns a session that was kept, or NotFound.
	Recall(ctx context.Context, gateway string, name countersign.BrokerName) (countersign.Session, error)
	// Resting calls found with each session, of any broker, that depends on a credential,
	// and one of the names that it was kept under.
	Resting(ctx context.Context, credential string, found func(countersign.Session, countersign.BrokerName)) error
	// End removes a session.
	End(ctx context.Context, gateway string, name countersign.BrokerName) error
}

// reply is an answer in the form of one protocol.
type reply struct {
	status  int
	header  map[string]string
	body    []byte
	allowed bool
}

// asked is a question as received.
type asked struct {
	hook   *Hook
	path   string // below /hooks/<name>/
	r      *http.Request
	body   []byte
	caller netip.AddrPort
}

// protocol is how brokers of one kind ask.
type protocol struct {
	answer func(*Server, context.Context, asked) reply
	// no is the refusal where there is no better one: an unknown caller, too many questions
	// at once, a question that cannot be read.
	no func() reply
}

func protocolOf(k Kind) (protocol, bool) {
	switch k {
	case EMQX:
		return protocol{(*Server).emqx, emqxDeny}, true
	case RabbitMQ:
		return protocol{(*Server).rabbitmq, rabbitDeny}, true
	case VerneMQ:
		return protocol{(*Server).vernemq, verneDeny}, true
	case Generic:
		return protocol{(*Server).generic, genericDeny}, true
	case Nginx:
		return protocol{(*Server).nginx, proxyDeny}, true
	case Envoy:
		return protocol{(*Server).envoy, proxyDeny}, true
	}
	return protocol{}, false // Mosquitto and NATS ask nothing here
}

// ServeHTTP answers a question.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := s.Now()
	name, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/hooks/"), "/")
	h := s.hook(name)
	var p protocol
	known := false
	if h != nil && strings.HasPrefix(r.URL.Path, "/hooks/") {
		p, known = protocolOf(h.Kind)
	}
	if !known {
		http.NotFound(w, r)
		return
	}
	out := s.decide(h, p, path, r)
	s.observe(Answer{Hook: name, Question: questionOf(path), Allowed: out.allowed, Took: s.Now().Sub(began)})
	for k, v := range out.header {
		w.Header().Set(k, v)
	}
	w.Header().Set("Cache-Control", "no-store") // a cached answer would outlive a revocation
	w.WriteHeader(out.status)
	_, _ = w.Write(out.body) // a caller that closed the connection will ask again
}

// decide decides on a question. Any failure is a refusal.
func (s *Server) decide(h *Hook, p protocol, path string, r *http.Request) reply {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	if s.busy.Add(1) > maxAsking {
		s.busy.Add(-1)
		return p.no()
	}
	defer s.busy.Add(-1)
	caller, err := netip.ParseAddrPort(r.RemoteAddr)
	if err == nil {
		err = s.recognize(ctx, h, r, caller)
	}
	if err != nil {
		s.warned.Do(func() {
			s.Log.WarnContext(ctx, "hook refused an unknown caller", "hook", h.Name, "remote", r.RemoteAddr, "error", err)
		})
		return p.no()
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody {
		return p.no()
	}
	return p.answer(s, ctx, asked{hook: h, path: path, r: r, body: body, caller: caller})
}

func questionOf(path string) string {
	switch path {
	case "authz", "resource", "topic", "vhost", "publish", "subscribe":
		return "topic"
	case "session":
		return "session"
	}
	return "connect"
}

func (s *Server) observe(a Answer) {
	if s.Observe != nil {
		s.Observe(a)
	}
}

func (s *Server) hook(name string) *Hook {
	i := slices.IndexFunc(s.Hooks, func(h Hook) bool { return h.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Hooks[i]
}

// recognize checks that the caller is the hook's broker or proxy.
func (s *Server) recognize(ctx context.Context, h *Hook, r *http.Request, caller netip.AddrPort) error {
	if h.Secret == nil && h.Device == "" && len(h.Networks) == 0 {
		return errors.New("the hook has no secret, device or network to recognize its caller by")
	}
	if !countersign.Contains(h.Networks, caller.Addr()) {
		return errors.New("its address is in none of the hook's networks")
	}
	if h.Secret != nil && !sameSecret(shownSecret(r), h.Secret) {
		return errors.New("it does not present the hook's secret")
	}
	if h.Device != "" {
		return s.recognizeDevice(ctx, h, r, caller)
	}
	return nil
}

// shownSecret returns the secret of the Authorization header. One in a URL is not accepted,
// because URLs are logged.
func shownSecret(r *http.Request) string {
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return bearer
	}
	_, password, _ := r.BasicAuth()
	return password
}

// sameSecret compares in constant time, whatever the lengths.
func sameSecret(shown string, secret []byte) bool {
	a, b := sha256.Sum256([]byte(shown)), sha256.Sum256(secret)
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// recognizeDevice decides on the caller as on any other device that connects, so that a
// broker can be revoked, too.
func (s *Server) recognizeDevice(ctx context.Context, h *Hook, r *http.Request, caller netip.AddrPort) error {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return errors.New("it presents no client certificate")
	}
	peer := r.TLS.PeerCertificates
	// A name that no hook has, since clients choose what follows it.
	v := s.admit(ctx, key{hook: h.Name + "/caller", client: fingerprint(peer[0])}, countersign.Connection{
		Gateway: h.gateway(), Remote: caller, Protocol: "HTTP", Peer: peer,
	})
	if !v.Allow {
		return fmt.Errorf("its certificate is refused: %s", v.Reason)
	}
	if v.Device != h.Device {
		return errors.New("its certificate is that of another device")
	}
	return nil
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
