package sdk_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ocsp"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
)

// meet connects two devices directly and says how each side saw it end.
func meet(t *testing.T, client, server *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	served := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		c := tls.Server(raw, server)
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if err := c.Handshake(); err != nil {
			served <- err
			return
		}
		peer, err := sdk.PeerOf(c.ConnectionState())
		if err == nil {
			_, err = io.WriteString(c, "hello "+peer.Device)
		}
		served <- err
	}()
	c, err := tls.Dial("tcp", ln.Addr().String(), client)
	if err != nil {
		_ = ln.Close()
		return state, err, <-served
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(c)
	if err == nil && !strings.HasPrefix(string(text), "hello ") {
		err = errors.New("no greeting: " + string(text))
	}
	return c.ConnectionState(), err, <-served
}

func (h *peers) enroll(t *testing.T, device, fleet string) *sdk.Identity {
	t.Helper()
	id, err := sdk.Enroll(t.Context(), sdk.Enrollment{
		Server: h.Endpoints().Enroll, Roots: h.Roots, Device: device, Token: h.Token(t, api.NewToken{Device: device, Fleet: fleet}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// peers is an authority with two fleets.
type peers struct{ *countersigntest.Server }

func newPeers(t *testing.T) *peers {
	t.Helper()
	h := &peers{countersigntest.Start(t)}
	if _, err := h.Admin.PutFleet(t.Context(), "valves", api.PutFleet{}); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestPeersMeetWithoutAServer(t *testing.T) {
	h := newPeers(t)
	a, b := h.enroll(t, "pump-1", ""), h.enroll(t, "pump-2", "")
	state, ce, se := meet(t, a.PeerConfig(sdk.Peers{}), b.PeerConfig(sdk.Peers{}))
	if ce != nil || se != nil {
		t.Fatalf("two good devices of a fleet: %v, %v", ce, se)
	}
	if peer, err := sdk.PeerOf(state); err != nil || peer.Device != "pump-2" || peer.Fleet != "default" {
		t.Errorf("got peer %+v, %v; want pump-2", peer, err)
	}

	t.Run("of another fleet only where it is allowed", func(t *testing.T) {
		v := h.enroll(t, "valve-1", "valves")
		if _, ce, se := meet(t, v.PeerConfig(sdk.Peers{}), b.PeerConfig(sdk.Peers{})); ce == nil && se == nil {
			t.Error("a device of another fleet was let in")
		}
		all := sdk.Peers{Allow: func(sdk.Peer) error { return nil }}
		if _, ce, se := meet(t, v.PeerConfig(all), b.PeerConfig(all)); ce != nil || se != nil {
			t.Errorf("allowed by both: %v, %v", ce, se)
		}
	})
	t.Run("of another authority never", func(t *testing.T) {
		s := newPeers(t).enroll(t, "pump-1", "")
		all := sdk.Peers{Allow: func(sdk.Peer) error { return nil }}
		_, ce, se := meet(t, s.PeerConfig(all), b.PeerConfig(all))
		if ce == nil || se == nil {
			t.Errorf("got %v, %v; want each side to refuse", ce, se)
		}
	})
	t.Run("with a fresh answer about its certificate", func(t *testing.T) {
		late := sdk.Peers{Now: func() time.Time { return time.Now().Add(15 * 24 * time.Hour) }} // the certificate is still good then
		if _, ce, se := meet(t, a.PeerConfig(sdk.Peers{}), b.Copy().PeerConfig(late)); ce == nil && se == nil {
			t.Error("an answer of two weeks ago was taken")
		}
		for name, forged := range map[string][]byte{"none": nil, "garbage": []byte("x"), "signed by the device": selfSigned(t, a)} {
			c := a.PeerConfig(sdk.Peers{})
			get := c.GetClientCertificate
			c.GetClientCertificate = func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				mine, err := get(i)
				mine.OCSPStaple = forged
				return mine, err
			}
			if _, _, se := meet(t, c, b.PeerConfig(sdk.Peers{})); se == nil || !strings.Contains(se.Error(), "OCSP") {
				t.Errorf("%s: got %v, want a refusal that speaks of OCSP", name, se)
			}
		}
	})
	t.Run("until it is revoked", func(t *testing.T) {
		if _, err := h.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"}); err != nil {
			t.Fatal(err)
		}
		_, _, se := meet(t, a.Copy().PeerConfig(sdk.Peers{}), b.PeerConfig(sdk.Peers{}))
		if se == nil || !strings.Contains(se.Error(), "revoked") {
			t.Errorf("got %v, want a refusal that says revoked", se)
		}
	})
}

// selfSigned is an OCSP answer that a device gives about itself.
func selfSigned(t *testing.T, id *sdk.Identity) []byte {
	t.Helper()
	issuer, err := x509.ParseCertificate(id.Path()[1])
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	der, err := ocsp.CreateResponse(issuer, id.Certificate(), ocsp.Response{
		Status: ocsp.Good, SerialNumber: id.Certificate().SerialNumber, ThisUpdate: now, NextUpdate: now.Add(time.Hour), Certificate: id.Certificate(),
	}, id.Key())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestPeersNeedTheStatusListenerOnlyNowAndThen(t *testing.T) {
	h := &peers{countersigntest.Start(t, countersigntest.Options{Configure: func(*config.Config) {}})}
	a, b := h.enroll(t, "pump-1", ""), h.enroll(t, "pump-2", "")
	client, server := a.PeerConfig(sdk.Peers{}), b.PeerConfig(sdk.Peers{})
	if _, ce, se := meet(t, client, server); ce != nil || se != nil {
		t.Fatalf("with the authority: %v, %v", ce, se)
	}
	h.Stop()
	if _, ce, se := meet(t, client, server); ce != nil || se != nil {
		t.Errorf("without the authority, answers at hand: %v, %v", ce, se)
	}
	if _, _, se := meet(t, a.Copy().PeerConfig(sdk.Peers{}), server); se == nil {
		t.Error("without the authority and without an answer: let in, want unknown to mean no")
	}
}

func TestIntroductionIsCheckedOffline(t *testing.T) {
	h := newPeers(t)
	a, b, c := h.enroll(t, "pump-1", ""), h.enroll(t, "pump-2", ""), h.enroll(t, "pump-3", "")
	made, err := a.Introduce(t.Context(), "pump-2", "modbus", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	other := newPeers(t).enroll(t, "pump-2", "")
	forged := forge(t, c, made.Introduction)
	h.Stop() // from here on nobody can be asked
	now := time.Now()
	in, err := b.Introduced(made.Signed, now)
	if err != nil {
		t.Fatalf("the one that it is for: %v", err)
	}
	if in.Purpose != "modbus" || in.Parties[0].Device != "pump-1" || in.Parties[1].Device != "pump-2" {
		t.Errorf("got %+v", in)
	}
	for name, try := range map[string]func() error{
		"a device that it does not name": func() error { _, err := c.Introduced(made.Signed, now); return err },
		"of another authority":           func() error { _, err := other.Introduced(made.Signed, now); return err },
		"when its time is over":          func() error { _, err := b.Introduced(made.Signed, now.Add(2*time.Minute)); return err },
		"before its time":                func() error { _, err := b.Introduced(made.Signed, now.Add(-time.Hour)); return err },
		"signed by a device":             func() error { _, err := b.Introduced(forged, now); return err },
		"altered":                        func() error { _, err := b.Introduced(altered(made.Signed), now); return err },
		"garbage":                        func() error { _, err := b.Introduced("a.b.c", now); return err },
		"endless":                        func() error { _, err := b.Introduced(strings.Repeat("a", 1<<20), now); return err },
	} {
		if try() == nil {
			t.Errorf("%s: taken, want it refused", name)
		}
	}
	state := func(id *sdk.Identity) tls.ConnectionState {
		return tls.ConnectionState{PeerCertificates: []*x509.Certificate{id.Certificate()}}
	}
	if err := sdk.CheckPeer(in, "pump-2", state(a)); err != nil {
		t.Errorf("the peer that is named: %v", err)
	}
	if sdk.CheckPeer(in, "pump-2", state(c)) == nil || sdk.CheckPeer(in, "pump-2", state(b)) == nil || sdk.CheckPeer(in, "pump-2", tls.ConnectionState{}) == nil {
		t.Error("another peer, ourselves, or nobody was taken for the one that is named")
	}
}

// altered changes the payload and leaves the signature.
func altered(signed string) string {
	part := strings.Split(signed, ".")
	b, _ := base64.RawURLEncoding.DecodeString(part[1])
	part[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(b), "modbus", "update", 1)))
	return strings.Join(part, ".")
}

// forge signs an introduction with a device's own certificate.
func forge(t *testing.T, id *sdk.Identity, in api.Introduction) string {
	t.Helper()
	path := make([]string, 0, len(id.Path()))
	for _, der := range id.Path() {
		path = append(path, base64.StdEncoding.EncodeToString(der))
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: crypto.PrivateKey(id.Key())},
		(&jose.SignerOptions{}).WithType(api.IntroductionType).WithHeader("x5c", path))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestIntroductionsStayWithinTheirBounds(t *testing.T) {
	h := newPeers(t)
	a := h.enroll(t, "pump-1", "")
	h.enroll(t, "valve-1", "valves")
	ctx := context.WithoutCancel(t.Context())
	for name, try := range map[string]func() error{
		"a peer of another fleet":  func() error { _, err := a.Introduce(ctx, "valve-1", "modbus", 0); return err },
		"a peer that there is not": func() error { _, err := a.Introduce(ctx, "pump-9", "modbus", 0); return err },
		"itself":                   func() error { _, err := a.Introduce(ctx, "pump-1", "modbus", 0); return err },
		"no purpose":               func() error { _, err := a.Introduce(ctx, "pump-1", "", 0); return err },
		"a day":                    func() error { _, err := a.Introduce(ctx, "pump-1", "modbus", 24*time.Hour); return err },
		"an operator with one device": func() error {
			_, err := h.Admin.Introduce(ctx, api.NewIntroduction{Peer: "pump-1", Purpose: "x"})
			return err
		},
	} {
		if try() == nil {
			t.Errorf("%s: introduced, want a refusal", name)
		}
	}
	made, err := h.Admin.Introduce(ctx, api.NewIntroduction{Device: "pump-1", Peer: "valve-1", Purpose: "modbus"})
	if err != nil {
		t.Fatalf("an operator, of two fleets: %v", err)
	}
	if _, err := a.Introduced(made.Signed, time.Now()); err != nil {
		t.Errorf("a party: %v", err)
	}
	if _, err := h.Admin.Revoke(ctx, "valve-1", api.Revoke{Reason: "keyCompromise"}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Admin.Introduce(ctx, api.NewIntroduction{Device: "pump-1", Peer: "valve-1", Purpose: "modbus"}); err == nil {
		t.Error("a revoked device was introduced")
	}
}

func TestAccessTokenIsTheDevicesOwn(t *testing.T) {
	h := newPeers(t)
	a := h.enroll(t, "pump-1", "")
	made, err := a.AccessToken(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if made.Subject != "pump-1" || len(made.Devices) != 0 || !strings.HasPrefix(made.Token, "eyJ") {
		t.Errorf("got %+v", made.AccessToken)
	}
	if _, err := a.AccessToken(t.Context(), 24*time.Hour); err == nil {
		t.Error("a token for a day was given")
	}
	if _, err := h.Admin.Suspend(t.Context(), "pump-1", api.Act{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.AccessToken(t.Context(), 0); err == nil {
		t.Error("a suspended device was given a token")
	}
}
