package rest

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ra"
)

// What a device may ask for itself, with its certificate.

// connection is the device that asks, as a gateway would tell of it.
func connection(r *http.Request) countersign.Connection {
	return countersign.Connection{Gateway: "rest", Remote: remoteOf(r), Protocol: "HTTPS", Peer: r.TLS.PeerCertificates}
}

// shows refuses who shows nothing before the door is asked: there are no guests
// here, and each that the door lets in takes the place of another.
func shows(c countersign.Connection) error {
	if len(c.Peer) == 0 && len(c.Password) == 0 {
		return countersign.Errorf(countersign.Unauthenticated, "no client certificate was shown").WithNext("connect with the device's certificate")
	}
	return nil
}

// introduce answers api.NewIntroduction with api.SignedIntroduction.
func (e *Enroll) introduce(w http.ResponseWriter, r *http.Request) error {
	body, err := readAll(w, r)
	if err != nil {
		return err
	}
	var in api.NewIntroduction
	if err := decodeStrictly(body, &in, `send {"peer": "...", "purpose": "..."}`); err != nil {
		return err
	}
	if in.Device != "" {
		return countersign.Errorf(countersign.BadRequest, "a device asks for itself").WithNext("leave device out")
	}
	c := connection(r)
	if err := shows(c); err != nil {
		return err
	}
	out, err := e.RA.IntroduceMe(r.Context(), c, introductionOf(in))
	if err != nil {
		return err
	}
	writeJSON(w, out)
	return nil
}

func introductionOf(in api.NewIntroduction) ra.Introduction {
	return ra.Introduction{Device: in.Device, Peer: in.Peer, Purpose: in.Purpose, TTL: time.Duration(in.TTLSeconds) * time.Second}
}

// accessToken gives the device that asks an access token of its own.
func (e *Enroll) accessToken(w http.ResponseWriter, r *http.Request) error {
	body, err := readAll(w, r)
	if err != nil {
		return err
	}
	in := struct {
		TTLSeconds int64 `json:"ttl_seconds"`
	}{}
	if len(body) > 0 {
		if err := decodeStrictly(body, &in, `send {"ttl_seconds": 900}, or nothing`); err != nil {
			return err
		}
	}
	c := connection(r)
	if err := shows(c); err != nil {
		return err
	}
	k, text, err := e.RA.DeviceToken(r.Context(), c, ttlOf(in.TTLSeconds))
	if err != nil {
		return err
	}
	writeJSON(w, api.IssuedAccessToken{AccessToken: shapeAccessToken(k), Token: text})
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // nobody to tell when the caller is gone
}
