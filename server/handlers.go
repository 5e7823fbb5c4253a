package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/enroll"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/rest"
	"github.com/countersign-iot/countersign/status"
)

// openDoors makes a handler for each HTTP listener.
func (s *Server) openDoors(context.Context) error {
	s.metrics.watch(s)
	s.doors.serve("enroll", s.listeners.enroll, s.enrollment(s.authority, s.authority), s.identity.tlsConfig())
	s.doors.serve("recovery", s.listeners.recovery, s.enrollment(ra.Recovery{RA: s.authority}, nil), s.identity.tlsConfig())
	s.doors.serveStatus(s.listeners.status, &status.Server{Authority: s.ca, Log: s.log, Now: s.opts.Now})
	provisioner := &provision.Provisioner{
		DB: s.db, CA: s.ca, Registry: s.registry, Operators: s.gate.Accounts, Events: s.events, Sealer: s.authority.Sealer, Tokens: s.authority.Access.Tokens, Rules: func(r countersign.Rules) error { return errors.Join(s.authority.CheckRules(r), s.alerts.CheckRules(r)) },
	}
	if err := s.openSignIn(provisioner); err != nil {
		return err
	}
	if s.broker != nil {
		provisioner.Messages = s.broker
	}
	own := &selfChecks{&s.core, s.keys, s.broker, &s.mark}
	operators := func(local bool) http.Handler {
		door := &rest.Server{
			CA: s.ca, Registry: s.registry, Events: s.events, RA: s.authority, Operators: s.gate.Accounts, Gate: s.gate, Provisioner: provisioner,
			Alerts: s.alerts, Auditor: s.auditor, Sessions: s.index.Sessions, Checks: own.all, Offline: s.cfg.OfflineSessions, Local: local, Now: s.opts.Now, Log: s.log,
		}
		mux := http.NewServeMux()
		mux.Handle("/", door.Handler())
		mux.Handle("GET /metrics", door.Protect(operator.Read, s.metrics.handler()))
		return mux
	}
	apiTLS := s.identity.tlsConfig()
	apiTLS.ClientAuth = 0 // a browser that is asked for a certificate shows a dialog
	if s.cfg.Listeners.PlainAPI() {
		apiTLS = nil
	}
	s.doors.serve("api", s.listeners.api, operators(false), apiTLS)
	s.doors.serve("socket", peerNamed(s.listeners.socket), operators(true), nil)
	return nil
}

// enrollment is the handler of a listener where devices get certificates; authority is
// nil where they can do nothing else.
func (s *Server) enrollment(by countersign.Enroller, authority *ra.Authority) http.Handler {
	mux := http.NewServeMux()
	anchors := &trust{s.ca, s.registry}
	door := &est.Server{
		Enroller: by, Trust: anchors, Keys: anchors, Log: s.log, Now: s.opts.Now,
		KeySigner: func() (*tls.Certificate, error) { return s.identity.get(nil) },
	}
	for _, prefix := range []string{"", "/{label}"} { // strongSwan puts the label first
		mux.Handle(prefix+"/.well-known/est", door)
		mux.Handle(prefix+"/.well-known/est/", door)
	}
	devices := &enroll.Server{Enroller: by, Log: s.log, Now: s.opts.Now}
	if authority != nil {
		devices.Devices = authority
	}
	devices.OpenAPI = rest.DescribeDevices(devices.Routes())
	mux.Handle(api.Base+"/", devices)
	return evenPaths(mux)
}
