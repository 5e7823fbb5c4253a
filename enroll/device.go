package enroll

import (
	"net/http"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

// What a device asks for itself, with its certificate or its secret.

// connection describes the device that asks as a gateway would.
func connection(r *http.Request) countersign.Connection {
	return countersign.Connection{Gateway: door, Remote: remoteOf(r), Protocol: "HTTPS", Peer: r.TLS.PeerCertificates}
}

// requireEvidence refuses a device that shows nothing before Devices is asked: there are
// no guests here, and each that is let in takes the place of another.
func requireEvidence(c countersign.Connection) error {
	if len(c.Peer) == 0 && len(c.Password) == 0 {
		return countersign.Errorf(countersign.Unauthenticated, "no client certificate was shown").WithNext("connect with the device's certificate")
	}
	return nil
}

func (s *Server) introduce(w http.ResponseWriter, r *http.Request) error {
	var in api.NewIntroduction
	if err := readJSON(w, r, &in, `send {"peer": "...", "purpose": "..."}`); err != nil {
		return err
	}
	if in.Device != "" {
		return countersign.Errorf(countersign.BadRequest, "a device asks for itself").WithNext("leave device out")
	}
	c := connection(r)
	if err := requireEvidence(c); err != nil {
		return err
	}
	out, err := s.Devices.Introduce(r.Context(), c, in)
	if err != nil {
		return err
	}
	writeJSON(w, out)
	return nil
}

func (s *Server) accessToken(w http.ResponseWriter, r *http.Request) error {
	var in api.NewDeviceAccessToken
	if err := readOptionalJSON(w, r, &in, `send {"ttl_seconds": 900}, or nothing`); err != nil {
		return err
	}
	c := connection(r)
	if err := requireEvidence(c); err != nil {
		return err
	}
	out, err := s.Devices.AccessToken(r.Context(), c, time.Duration(in.TTLSeconds)*time.Second)
	if err != nil {
		return err
	}
	writeJSON(w, out)
	return nil
}

// changeSecret answers with the device's next secret. The evidence is its present one as
// HTTP Basic (the user name is the device's id), or its certificate.
func (s *Server) changeSecret(w http.ResponseWriter, r *http.Request) error {
	var in api.ChangeSecret
	if err := readOptionalJSON(w, r, &in, `send {"binary": false}, or nothing`); err != nil {
		return err
	}
	c := connection(r)
	if name, password, ok := r.BasicAuth(); ok {
		c.Username, c.Password = name, []byte(password)
	}
	if err := requireEvidence(c); err != nil {
		return err
	}
	out, err := s.Devices.ChangeSecret(r.Context(), c, in)
	if err != nil {
		return err
	}
	writeJSON(w, out) // a device that is gone still has its present one
	return nil
}
