package ra

import (
	"context"
	"crypto/x509"
	"strings"

	"github.com/countersign-iot/countersign"
)

// The profile writes the subject and the alternative names of a certificate, so the names
// in a request are compared and never copied. What a device may have in its first request
// it may repeat in each renewal: names that say nothing of a device are ignored at both,
// the name of another device is refused at both.

// urnPrefix begins the URI of a device in a fleet without a trust domain; see
// countersign.DeviceURI.
const urnPrefix = "urn:countersign:device:"

// namesAnother refuses a request with a URI by which this authority names another device.
// Which fleet the URI has does not matter: a device keeps its id when its fleet changes.
func (r *request) namesAnother(fleet *countersign.Fleet) error {
	for _, uri := range r.csr.URIs {
		if id, ours := deviceOf(uri, fleet); ours && id != r.device {
			return countersign.Errorf(countersign.SubjectMismatch, "the request has the URI %.200q of another device than %s", uri, r.device).
				WithNext("leave that URI out, or put the device's own there")
		}
	}
	return nil
}

// deviceOf reads the id out of a URI that names a device of this authority.
func deviceOf(uri string, fleet *countersign.Fleet) (id string, ours bool) {
	if rest, ok := strings.CutPrefix(uri, urnPrefix); ok {
		_, id, ok = strings.Cut(rest, ":")
		return id, ok
	}
	if rest, ok := strings.CutPrefix(uri, "spiffe://"+fleet.TrustDomain+"/"); ok && fleet.TrustDomain != "" {
		_, id, ok = strings.Cut(rest, "/")
		return id, ok
	}
	return "", false
}

// sameSubject refuses a renewal for another identity (RFC 7030, 4.2.2). Its common name is
// the device's id, that of a certificate of the device, or empty.
func (d *Authority) sameSubject(ctx context.Context, r *request, fleet *countersign.Fleet) error {
	own, err := d.ownName(ctx, r)
	if err != nil {
		return err
	}
	if !own {
		return countersign.Errorf(countersign.SubjectMismatch, "the request is for %.140q, the certificate for %s", r.csr.Subject.CommonName, r.device).
			WithNext("ask for the same subject as in the current certificate")
	}
	return r.namesAnother(fleet)
}

// ownName reports whether the common name of a renewal is the device's own. The one in a
// manufacturer's certificate need not be the device's id, and a device that was introduced
// with it may go on using it.
func (d *Authority) ownName(ctx context.Context, r *request) (bool, error) {
	cn := r.csr.Subject.CommonName
	if cn == "" || cn == r.device || cn == r.Evidence.Peer[0].Subject.CommonName {
		return true, nil
	}
	list, err := d.CA.FactoryCertificates(ctx, d.DB, r.device)
	if err != nil {
		return false, err
	}
	for i := range list {
		if cert, err := x509.ParseCertificate(list[i].DER); err == nil && cert.Subject.CommonName == cn {
			return true, nil
		}
	}
	return false, nil
}
