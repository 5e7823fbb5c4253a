package hook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

const (
	calloutSubject = "$SYS.REQ.USER.AUTH"
	xkeyHeader     = "Nats-Server-Xkey"
	// calloutAudience is the audience of a question.
	calloutAudience = "nats-authorization-request"
	// maxCallout bounds a question: chains of certificates and a password, in a JWT.
	maxCallout = 512 << 10
	// maxCallouts bounds the questions that wait; NATS itself gives up after seconds.
	maxCallouts = 1024
	// calloutWorkers bounds those that are decided at once.
	calloutWorkers = 64
	// natsRetry is the pause between tries to reach NATS.
	natsRetry = time.Second
	// natsNothing is a subject that no client uses: an empty list would allow all.
	natsNothing = "_countersign.nothing"
)

// NATSServer is how a NATS server is reached.
type NATSServer struct {
	URL    string // nats:// or tls://
	User   string
	Secret []byte
	TLS    *tls.Config // nil: the system's defaults, if the server requires TLS
}

func (n NATSServer) options(log *slog.Logger, hook string) []nats.Option {
	list := []nats.Option{
		nats.Name("countersign"), nats.UserInfo(n.User, string(n.Secret)),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(natsRetry),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("connection to nats lost", "hook", hook, "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Error("nats refuses", "hook", hook, "error", err)
		}),
	}
	if n.TLS != nil {
		list = append(list, nats.Secure(n.TLS))
	}
	return list
}

// Callout answers the auth callout of a NATS server.
type Callout struct {
	Server  *Server // decides
	Hook    string
	NATS    NATSServer
	Seed    []byte // nkey seed of the issuer in auth_callout, SA…
	XKey    []byte // seed of its xkey, SX…; nil: questions are not encrypted
	Account string // that devices are placed in
	Log     *slog.Logger

	issuer nkeys.KeyPair
	curve  nkeys.KeyPair
}

// Prepare reads the seeds, so that a wrong one is found before the first question.
func (c *Callout) Prepare() (err error) {
	if c.issuer, err = nkeys.FromSeed(c.Seed); err != nil {
		return fmt.Errorf("couldn't use the seed of hook %s: %w", c.Hook, err)
	}
	if c.XKey != nil {
		if c.curve, err = nkeys.FromCurveSeed(c.XKey); err != nil {
			return fmt.Errorf("couldn't use the xkey of hook %s: %w", c.Hook, err)
		}
	}
	public, err := c.issuer.PublicKey()
	if err == nil && !nkeys.IsValidPublicAccountKey(public) {
		err = errors.New("it is not that of an account")
	}
	if err != nil {
		return fmt.Errorf("couldn't use the seed of hook %s: %w", c.Hook, err)
	}
	return nil
}

// Run answers until ctx ends, once Prepare has been called.
func (c *Callout) Run(ctx context.Context) error {
	conn, err := nats.Connect(c.NATS.URL, c.NATS.options(c.Log, c.Hook)...)
	if err != nil {
		return fmt.Errorf("couldn't set up the connection of hook %s: %w", c.Hook, err)
	}
	defer conn.Close()
	questions := make(chan *nats.Msg, maxCallouts)
	// A queue group: with several nodes each question is answered once.
	if _, err := conn.ChanQueueSubscribe(calloutSubject, "countersign", questions); err != nil {
		return fmt.Errorf("couldn't listen for questions of hook %s: %w", c.Hook, err)
	}
	slots := make(chan struct{}, calloutWorkers)
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-questions:
			slots <- struct{}{}
			workers.Go(func() {
				defer func() { <-slots }()
				ask, cancel := context.WithTimeout(ctx, askTime)
				defer cancel()
				if answer, err := c.answer(ask, m.Data, m.Header.Get(xkeyHeader)); err == nil {
					_ = m.Respond(answer) // NATS refuses a client if it gets no answer
				} else {
					c.Log.WarnContext(ctx, "question of nats not understood", "hook", c.Hook, "error", err)
				}
			})
		}
	}
}

// answer decides one question.
func (c *Callout) answer(ctx context.Context, data []byte, serverKey string) ([]byte, error) {
	in, err := c.open(data, serverKey)
	if err != nil {
		return nil, err
	}
	out := jwt.NewAuthorizationResponseClaims(in.UserNkey)
	out.Audience = in.Server.ID
	began := c.Server.Now()
	v := c.Server.connect(ctx, c.Server.hook(c.Hook), natsQuestion(in))
	c.Server.observe(Answer{Hook: c.Hook, Question: "connect", Allowed: v.Allow, Took: c.Server.Now().Sub(began)})
	if v.Allow {
		user := jwt.NewUserClaims(in.UserNkey)
		user.Name, user.Audience = v.Device, c.Account
		user.Permissions = natsPermissions(v.Permissions, in.ClientInformation.Type == "mqtt")
		if !v.NotAfter.IsZero() {
			user.Expires = v.NotAfter.Unix()
		}
		if out.Jwt, err = user.Encode(c.issuer); err != nil {
			return nil, err
		}
	} else {
		out.Error = plain(v.Reason)
		if out.Error == "" {
			out.Error = "not authorized"
		}
	}
	text, err := out.Encode(c.issuer)
	if err != nil {
		return nil, err
	}
	if serverKey == "" {
		return []byte(text), nil
	}
	return c.curve.Seal([]byte(text), serverKey)
}

// open decrypts and checks a question. The JWT's own signature only proves that the
// writer has the key that it names; that NATS is the writer follows from the account,
// where only NATS may publish on this subject.
func (c *Callout) open(data []byte, serverKey string) (*jwt.AuthorizationRequestClaims, error) {
	if len(data) > maxCallout {
		return nil, errors.New("it is too long")
	}
	switch {
	case c.curve != nil && serverKey == "":
		return nil, errors.New("it is not encrypted, and the hook has an xkey")
	case c.curve == nil && serverKey != "":
		return nil, errors.New("it is encrypted, and the hook has no xkey")
	case c.curve != nil:
		var err error
		if data, err = c.curve.Open(data, serverKey); err != nil {
			return nil, errors.New("it cannot be decrypted with the hook's xkey")
		}
	}
	return readCallout(string(data))
}

func readCallout(text string) (*jwt.AuthorizationRequestClaims, error) {
	in, err := jwt.DecodeAuthorizationRequestClaims(text)
	if err != nil {
		return nil, err
	}
	var issues jwt.ValidationResults
	in.Validate(&issues)
	if issues.IsBlocking(true) {
		return nil, errors.New("it is not valid, or too old")
	}
	if in.Audience != calloutAudience || !nkeys.IsValidPublicServerKey(in.Issuer) || in.Issuer != in.Server.ID {
		return nil, errors.New("it does not come from a NATS server")
	}
	return in, nil
}

func natsQuestion(in *jwt.AuthorizationRequestClaims) question {
	info, opts := in.ClientInformation, in.ConnectOptions
	q := question{
		client: info.MQTT, user: opts.Username, protocol: "NATS", remote: address(info.Host, 0),
	}
	if info.Type == "mqtt" {
		q.protocol = "MQTT 3.1.1 over NATS"
	}
	switch {
	case in.TLS != nil && len(in.TLS.VerifiedChains) > 0:
		q.setChain(pemOf(in.TLS.VerifiedChains[0]))
	case in.TLS != nil && len(in.TLS.Certs) > 0:
		q.setChain(pemOf(in.TLS.Certs)) // TLS proved possession of its key; the issuer is checked here
	case opts.Password != "":
		q.setPassword(opts.Password)
	case opts.Token != "":
		q.setPassword(opts.Token)
	}
	return q
}

// pemOf joins the certificates of a path.
func pemOf(certs []string) string { return strings.Join(certs[:min(len(certs), maxChain)], "\n") }

// natsPermissions writes permissions as NATS subjects. Of MQTT's own subjects a client
// needs those of its QoS 1 subscriptions. NATS clients get their inbox by that name.
func natsPermissions(p countersign.Permissions, mqtt bool) jwt.Permissions {
	var out jwt.Permissions
	out.Pub.Allow = append(jwt.StringList{natsNothing}, topics.NATSSubjects(p.Publish.Allow)...)
	out.Pub.Deny = topics.NATSSubjects(p.Publish.Deny)
	out.Sub.Allow = append(jwt.StringList{natsNothing}, topics.NATSSubjects(within(p.Subscribe.Allow, p.Receive))...)
	out.Sub.Deny = topics.NATSSubjects(slices.Concat(p.Subscribe.Deny, p.Receive.Deny))
	if mqtt {
		out.Sub.Allow = append(out.Sub.Allow, "$MQTT.sub.>")
	}
	return out
}

// within returns the filters that the others cover.
func within(filters []string, others countersign.Filters) []string {
	return slices.DeleteFunc(slices.Clone(filters), func(f string) bool { return !topics.Allowed(others.Allow, nil, f) })
}
