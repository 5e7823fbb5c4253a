package server

import (
	"net/http"
	"time"

	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/rest"
)

// providerTimeout bounds one question to the OpenID provider.
const providerTimeout = 10 * time.Second

// openSignIn puts the exchange of tokens beside MQTT over WebSocket.
func (s *Server) openSignIn(provisioner *provision.Provisioner) error {
	if s.gateway == nil {
		return nil
	}
	x := &rest.Exchange{
		Provisioner: provisioner, Gate: s.gate, Origins: s.cfg.WebSocket.Origins, Now: s.opts.Now, Log: s.log,
	}
	if o := s.cfg.OIDC; o.Issuer != "" {
		client, err := providerClient(o.Roots)
		if err != nil {
			return err
		}
		x.OIDC = &operator.OIDC{Issuer: o.Issuer, ClientID: o.ClientID, Client: client, Now: s.opts.Now}
		for _, g := range o.Grants {
			x.OIDC.Grants = append(x.OIDC.Grants, operator.Grant{Claim: g.Claim, Value: g.Value, Role: operator.Role(g.Role), Fleets: g.Fleets})
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/token", x)
	s.gateway.Pages = mux
	return nil
}

func providerClient(roots string) (*http.Client, error) {
	c, err := clientTLS("oidc.roots", roots)
	t := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment}
	return &http.Client{Transport: t, Timeout: providerTimeout}, err
}
