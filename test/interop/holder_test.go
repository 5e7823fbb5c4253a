package interop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/sdk"
)

// holder is a device with its operator: what both have been answered, and the one
// request whose answer they may have missed.
type holder struct {
	id       string
	token    string // answered
	identity *sdk.Identity
	certs    []*x509.Certificate // answered, in this order
	key      crypto.Signer       // of the request under way
	revoking bool                // asked for
	revoked  bool                // answered
	used     bool                // the last certificate has connected
}

// live is the life of one device: a token, a certificate, n%3 renewals and, for
// every other one, the end. It reports whether the server was there for all of it.
func (h *holder) live(t *testing.T, s *site, n int) bool {
	issued, err := s.admin.CreateToken(t.Context(), api.NewToken{Device: h.id})
	if !answered(t, "make a token", err) {
		return false
	}
	h.token = issued.Secret
	if !answered(t, "enroll", h.enroll(t, s)) {
		return false
	}
	for range n % 3 {
		if !answered(t, "renew", h.renew(t)) {
			return false
		}
	}
	return n%2 == 0 || answered(t, "revoke", h.revoke(t, s))
}

// answered reports whether the server answered. What it answered must be a yes:
// nothing in the storm deserves a refusal.
func answered(t *testing.T, what string, err error) bool {
	if err == nil {
		return true
	}
	if _, refused := errors.AsType[*sdk.Error](err); refused || est.StatusOf(err) != 0 {
		t.Errorf("%s in the storm: refused: %v", what, err)
	}
	return false
}

// newKey is a key for the next request, unless the last one's answer was lost.
func (h *holder) newKey(t *testing.T) crypto.Signer {
	if h.key == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Error(err)
		}
		h.key = key
	}
	return h.key
}

func (h *holder) enroll(t *testing.T, s *site) error {
	identity, err := sdk.Enroll(t.Context(), sdk.Enrollment{
		Server: s.ends.Enroll, Roots: s.roots, Device: h.id, Token: h.token, Key: h.newKey(t),
	})
	if err == nil {
		h.identity = identity
		h.got()
	}
	return err
}

func (h *holder) renew(t *testing.T) error {
	err := h.identity.RenewWith(t.Context(), h.newKey(t))
	if err == nil {
		h.got()
	}
	return err
}

func (h *holder) got() {
	h.key = nil
	h.certs = append(h.certs, h.identity.Certificate())
}

func (h *holder) revoke(t *testing.T, s *site) error {
	h.revoking = true
	_, err := s.admin.Revoke(t.Context(), h.id, api.Revoke{Reason: "keyCompromise"})
	h.revoked = h.revoked || err == nil
	return err
}

// settle asks again for what was not answered, with the same key: the server must
// grant it, and must not have granted it twice.
func (h *holder) settle(t *testing.T, s *site) {
	t.Helper()
	switch {
	case h.token == "": // whether there is a token, nobody can know
		return
	case h.key != nil:
		lost, again := h.key, h.renew
		if h.identity == nil {
			again = func(t *testing.T) error { return h.enroll(t, s) }
		}
		if err := again(t); err != nil {
			t.Errorf("%s asks again after the crash: %v", h.id, err)
			return
		}
		if n := h.grantsFor(t, s, lost); n != 1 {
			t.Errorf("%s: got %d certificates for one key, want 1", h.id, n)
		}
	case h.revoking && !h.revoked:
		err := h.revoke(t, s)
		if code := countersign.CodeOf(err); err != nil && code != countersign.Conflict {
			t.Errorf("revoke %s again after the crash: %v", h.id, err)
		}
		h.revoked = true
	}
}

func (h *holder) grantsFor(t *testing.T, s *site, key crypto.Signer) int {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	n := 0
	for c, err := range s.admin.Certificates(t.Context(), api.CertificateFilter{Device: h.id}) {
		if err != nil {
			t.Fatal(err)
		}
		if c.KeyHash == hex.EncodeToString(sum[:]) {
			n++
		}
	}
	return n
}

// state is what the record must say of the i-th certificate. To renew with one is
// to use it, and the one before is superseded then.
func (h *holder) state(i int) string {
	last := len(h.certs) - 1
	switch {
	case h.revoked:
		return "revoked"
	case i == last && !h.used:
		return "pending"
	case i == last, i == last-1 && !h.used:
		return "active"
	}
	return "superseded"
}

// checkHeld wants every certificate that any client holds on record, bit by bit,
// under a serial of its own, and revoked if that was answered.
func checkHeld(t *testing.T, s *site, holders []*holder) {
	t.Helper()
	serials := map[countersign.Serial]string{}
	for _, h := range holders {
		for i, cert := range h.certs {
			serial := countersign.SerialOf(cert.SerialNumber)
			if other, twice := serials[serial]; twice {
				t.Errorf("serial %s was given to %s and %s", serial, other, h.id)
			}
			serials[serial] = h.id
			rec, err := s.admin.Certificate(t.Context(), string(serial))
			if err != nil {
				t.Errorf("certificate %d of %s, which the device holds: %v", i, h.id, err)
				continue
			}
			if !parsePEM(t, rec.PEM).Equal(cert) || rec.Device != h.id {
				t.Errorf("certificate %d of %s: another one is on record, of %s", i, h.id, rec.Device)
			}
			if (rec.State == "revoked") != h.revoked {
				t.Errorf("certificate %d of %s: got state %s, want revoked: %v", i, h.id, rec.State, h.revoked)
			}
		}
	}
	if len(serials) == 0 {
		t.Error("no device got a certificate: the storm proved nothing")
	}
}

// checkRecord wants the exact state of each certificate and device.
func checkRecord(t *testing.T, s *site, holders []*holder) {
	t.Helper()
	for _, h := range holders {
		var got []string
		for _, cert := range h.certs {
			rec, err := s.admin.Certificate(t.Context(), string(countersign.SerialOf(cert.SerialNumber)))
			if err != nil {
				t.Errorf("certificate of %s, which the device holds: %v", h.id, err)
				continue
			}
			got = append(got, rec.State)
		}
		var want []string
		for i := range h.certs {
			want = append(want, h.state(i))
		}
		if !slices.Equal(got, want) {
			t.Errorf("certificates of %s: got states %v, want %v", h.id, got, want)
		}
		dev, err := s.admin.Device(t.Context(), h.id)
		switch {
		case len(h.certs) == 0:
			if e, ok := errors.AsType[*sdk.Error](err); !ok || e.Status != http.StatusNotFound {
				t.Errorf("device %s, which nobody enrolled: got %v, want 404", h.id, err)
			}
		case err != nil:
			t.Errorf("device %s: %v", h.id, err)
		case h.revoked && dev.State != "registered", !h.revoked && dev.State != "active":
			t.Errorf("device %s: got state %s, revoked: %v", h.id, dev.State, h.revoked)
		}
	}
}
