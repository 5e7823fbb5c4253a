package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/hook"
	"github.com/countersign-iot/countersign/registry"
)

// hooks are the brokers and proxies of others: what answers them, and what
// asks them to disconnect devices. The zero value is none.
type hooks struct {
	*core
	registry *registry.Registry
	ca       *ca.CA

	server   *hook.Server
	kicker   *hook.Kicker
	callouts []*hook.Callout
	crls     []*hook.CRLFile
}

// lately is how far back a starting process looks for devices whose sessions the one
// before it may not have ended.
const lately = time.Hour

// maxLately bounds what it reads of each kind of event.
const maxLately = 1000

// openHooks makes them. Their secrets are read once.
func (s *Server) openHooks(context.Context) error {
	h := &s.hooks
	h.core, h.registry, h.ca = &s.core, s.registry, s.ca
	if len(s.cfg.Hooks) == 0 {
		return nil
	}
	m := newHookMetrics(s.metrics)
	h.kicker = &hook.Kicker{Report: s.events.Later, Observe: m.kicked, Log: s.log, Now: s.opts.Now}
	h.server = &hook.Server{
		Gatekeeper: s.authority, Kicker: h.kicker, Live: s.events.Live, Observe: m.answered,
		Record: &access.BrokerSessions{DB: s.db, Now: s.opts.Now},
		Log:    s.log, Now: s.opts.Now,
	}
	s.metrics.gauge("countersign_hook_kicks_waiting", "Devices whose sessions at a broker are not confirmed to be gone.", func() float64 {
		return float64(h.kicker.Waiting())
	})
	for _, c := range s.cfg.Hooks {
		if err := h.open(c); err != nil {
			return fmt.Errorf("open hook %s: %w", c.Name, err)
		}
	}
	s.events.Subscribe(h.noticed)
	var tlsConfig *tls.Config
	if !s.cfg.Listeners.PlainHook() {
		tlsConfig = s.identity.tlsConfig()
	}
	s.doors.serve("hook", s.listeners.hook, h.server, tlsConfig)
	return nil
}

func (h *hooks) open(c config.Hook) error {
	secret, err := resolve(c.Secret)
	if err != nil {
		return err
	}
	h.server.Hooks = append(h.server.Hooks, hook.Hook{
		Name: c.Name, Kind: hook.Kind(c.Kind), Secret: secret, Device: c.Device, Networks: c.Allowed(), Vouch: c.Vouch, VHosts: c.VHosts,
	})
	if c.CRL.File != "" {
		h.crls = append(h.crls, hook.NewCRLFile(hook.CRLFile{Path: c.CRL.File, PID: c.CRL.PID, Lists: h.allCRLs, Log: h.log}))
	}
	if c.Kind == string(hook.NATS) {
		if err := h.openCallout(c); err != nil {
			return err
		}
	}
	if c.Kick.URL == "" {
		return nil
	}
	d, err := h.driver(c)
	if err == nil {
		h.kicker.Drivers = append(h.kicker.Drivers, d)
	}
	return err
}

// resolve reads a secret; nil where none is configured.
func resolve(ref config.Secret) ([]byte, error) {
	if ref == "" {
		return nil, nil
	}
	v, err := ref.Resolve()
	return []byte(v), err
}

func (h *hooks) openCallout(c config.Hook) error {
	out := &hook.Callout{Server: h.server, Hook: c.Name, Account: c.NATS.Account, Log: h.log}
	secret, err := resolve(c.NATS.Secret)
	if err == nil {
		out.Seed, err = resolve(c.NATS.Seed)
	}
	if err == nil {
		out.XKey, err = resolve(c.NATS.XKey)
	}
	if err == nil {
		out.NATS, err = natsServer(c.NATS.URL, c.NATS.User, secret, c.NATS.Roots)
	}
	if err == nil {
		err = out.Prepare()
	}
	h.callouts = append(h.callouts, out)
	return err
}

func natsServer(address, user string, secret []byte, roots string) (n hook.NATSServer, err error) {
	n = hook.NATSServer{URL: address, User: user, Secret: secret}
	u, err := url.Parse(address)
	if err == nil && (u.Scheme == "tls" || roots != "") {
		n.TLS, err = clientTLS("the broker's roots", roots)
	}
	return n, err
}

// driver makes what asks a broker to disconnect devices.
func (h *hooks) driver(c config.Hook) (*hook.Driver, error) {
	secret, err := resolve(c.Kick.Secret)
	if err != nil {
		return nil, err
	}
	if c.Kind == string(hook.NATS) {
		server, err := natsServer(c.Kick.URL, c.Kick.User, secret, c.Kick.Roots)
		return hook.KickNATS(c.Name, server, h.log), err
	}
	tlsConfig, err := clientTLS("the broker's roots", c.Kick.Roots)
	if err != nil {
		return nil, err
	}
	if c.Kind == string(hook.Mosquitto) {
		return hook.KickMosquitto(c.Name, hook.Dynsec{URL: c.Kick.URL, User: c.Kick.User, Secret: secret, TLS: tlsConfig}), nil
	}
	api := hook.API{URL: c.Kick.URL, User: c.Kick.User, Secret: secret, Client: &http.Client{
		Transport:     &http.Transport{TLSClientConfig: tlsConfig, MaxIdleConnsPerHost: maxHookConns, IdleConnTimeout: idleTimeout},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the secret is for one host
	}}
	switch hook.Kind(c.Kind) {
	case hook.EMQX:
		return hook.KickEMQX(c.Name, api), nil
	case hook.RabbitMQ:
		return hook.KickRabbitMQ(c.Name, api), nil
	case hook.VerneMQ:
		return hook.KickVerneMQ(c.Name, api), nil
	}
	return hook.KickWebhook(c.Name, api), nil
}

// maxHookConns is how many connections to a broker's API are kept for the next call.
const maxHookConns = 8

// allCRLs are the lists of all authorities that have one.
func (h *hooks) allCRLs(ctx context.Context) (lists [][]byte, err error) {
	for _, a := range h.ca.Authorities() {
		l, err := h.ca.CRL(ctx, a.ID, 0)
		if countersign.CodeOf(err) == countersign.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		lists = append(lists, l.DER)
	}
	return lists, nil
}

func (h *hooks) noticed(e countersign.Event) {
	h.server.OnEvent(e)
	if e.Type == countersign.CRLPublished {
		for _, f := range h.crls {
			f.Published()
		}
	}
}

// run works for them until ctx ends.
func (h *hooks) run(ctx context.Context) error {
	if h.server == nil {
		return nil
	}
	if err := h.catchUp(ctx); err != nil {
		h.log.ErrorContext(ctx, "what happened lately not read", "error", err)
	}
	var all errgroup.Group // without a context: one that fails must not end the others
	all.Go(func() error { return h.kicker.Run(ctx, h.server) })
	for _, c := range h.callouts {
		all.Go(func() error {
			err := c.Run(ctx)
			if err != nil && ctx.Err() == nil {
				h.log.ErrorContext(ctx, "a hook answers no more", "hook", c.Hook, "error", err)
			}
			return err
		})
	}
	for _, f := range h.crls {
		all.Go(func() error { return f.Run(ctx) })
	}
	return all.Wait()
}

// catchUp passes on again the events of the devices that lost their identity lately and
// do not have it back, and of the credentials that were stopped.
func (h *hooks) catchUp(ctx context.Context) error {
	lost := []countersign.EventType{countersign.DeviceRevoked, countersign.DeviceSuspendedEv, countersign.DeviceRetiredEv}
	for kind, row := range countersign.Kinds() {
		ofDevice := slices.Contains(lost, kind)
		if !ofDevice && row.Ends != countersign.EndsCredential {
			continue
		}
		list, _, err := h.events.List(ctx, event.Filter{Type: kind, Since: h.now().Add(-lately), Newest: true, Limit: maxLately})
		if err != nil {
			return err
		}
		for _, e := range list {
			var device registry.Entry
			if ofDevice {
				device, err = h.registry.Device(ctx, h.db, e.Device)
			}
			if err != nil && countersign.CodeOf(err) != countersign.NotFound {
				return err
			}
			if device.State != countersign.DeviceActive {
				h.server.OnEvent(e)
			}
		}
	}
	return nil
}
