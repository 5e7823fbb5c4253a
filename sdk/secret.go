package sdk

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"iter"
	"net/http"

	"github.com/countersign-iot/countersign/api"
)

// Secrets lists the secrets that a device connects with, the newest first, without
// the secrets themselves.
func (a *Admin) Secrets(ctx context.Context, device string) iter.Seq2[api.Secret, error] {
	return list[api.Secret](ctx, a, devicePath(device, "/secrets"), query())
}

// CreateSecret returns a device a secret to connect with. The answer is the only one
// that holds it.
func (a *Admin) CreateSecret(ctx context.Context, device string, n api.NewSecret) (*api.IssuedSecret, error) {
	return post[api.IssuedSecret](ctx, a, devicePath(device, "/secrets"), n)
}

// RotateSecret returns a device the successor of its secret, which stays good for
// the overlap.
func (a *Admin) RotateSecret(ctx context.Context, device string, n api.RotateSecret) (*api.IssuedSecret, error) {
	return post[api.IssuedSecret](ctx, a, devicePath(device, "/secrets/rotate"), n)
}

// StopSecret ends a secret for good and cuts the sessions that rest on it.
func (a *Admin) StopSecret(ctx context.Context, device, id string, act api.Act) (*api.StoppedSecret, error) {
	return post[api.StoppedSecret](ctx, a, devicePath(device, "/secrets/"+segment(id)+"/stop"), act)
}

// Login is a device that proves itself with a secret.
type Login struct {
	Server string         // https URL of the enrollment listener
	Roots  *x509.CertPool // what the server's certificate must lead to; nil: the system's
	Device string
	Secret []byte // any octets
}

// ChangeSecret asks for the device's next secret, text or 32 raw octets, and takes
// it over into l once it is there. The present one stays good for a day: keep the
// new one durably before that. A device that changed it less than a minute ago is
// refused with RateLimited.
func (l *Login) ChangeSecret(ctx context.Context, binary bool) (*api.IssuedSecret, error) {
	a := asker{l.Server, &tls.Config{RootCAs: l.Roots, MinVersion: tls.VersionTLS12}, func(r *http.Request) { r.SetBasicAuth(l.Device, string(l.Secret)) }}
	made, err := ask[api.IssuedSecret](ctx, a, "/secret", api.ChangeSecret{Binary: binary})
	if err != nil {
		return nil, fmt.Errorf("change the secret of %s: %w", l.Device, err)
	}
	if l.Secret = made.Octets; !binary {
		l.Secret = []byte(made.Text)
	}
	return made, nil
}

// ChangeSecret asks, with the device's certificate, for its next secret to connect
// with where it cannot show the certificate. Its fleet has to accept secrets.
func (i *Identity) ChangeSecret(ctx context.Context, binary bool) (*api.IssuedSecret, error) {
	made, err := ask[api.IssuedSecret](ctx, i.asker(), "/secret", api.ChangeSecret{Binary: binary})
	if err != nil {
		return nil, fmt.Errorf("change the secret of %s: %w", i.Device(), err)
	}
	return made, nil
}
