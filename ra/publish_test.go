package ra_test

import (
	"context"
	"crypto/x509"
	"log/slog"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
)

// publish runs a publisher for the world, told of changes as the server tells it.
func (w *world) publish(t *testing.T) (stop func()) {
	t.Helper()
	p := ca.NewPublisher(w.CA, w.Events, slog.New(slog.DiscardHandler))
	w.Events.Subscribe(func(e countersign.Event) {
		switch e.Type {
		case countersign.CertRevokedEv, countersign.CertHeldEv, countersign.CertReplaced, countersign.CertReleased:
			p.Changed(e.Cert.Issuer)
		}
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	w.CRLs = p
	return func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not end with its context")
		}
	}
}

func (w *world) crl(t *testing.T) (*x509.RevocationList, int64) {
	t.Helper()
	l, err := w.CA.CRL(t.Context(), ca.IssuingID, 0)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseRevocationList(l.DER)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, l.Number
}

func TestRevokeAnswersWithTheListThatShowsIt(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		defer w.publish(t)()
		for _, id := range []string{"pump-1", "pump-2"} {
			cert := w.active(t, id)
			out, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise})
			if err != nil {
				t.Fatal(err)
			}
			list, number := w.crl(t)
			if out.CRLNumber == 0 || out.CRLNumber > number {
				t.Errorf("got CRL number %d, published is %d", out.CRLNumber, number)
			}
			found := false
			for _, e := range list.RevokedCertificateEntries {
				found = found || e.SerialNumber.Cmp(cert.SerialNumber) == 0 && e.ReasonCode == int(countersign.KeyCompromise)
			}
			if !found {
				t.Errorf("CRL %d does not show %s revoked for keyCompromise", number, id)
			}
		}
	})
}
