package est

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/pkcs10"
)

const (
	// exporterLabel and exporterLength make tls-exporter (RFC 9266, 2).
	exporterLabel  = "EXPORTER-Channel-Binding"
	exporterLength = 32
)

var oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7} // RFC 2985, 5.4.1

// Binding returns what a request must hold as challengePassword to be linked to
// the TLS session that it is sent over (RFC 7030, 3.5): the base64 of
// tls-exporter (RFC 9266), as tls-unique does not exist in TLS 1.3. It fails in
// TLS 1.2 without extended master secret, where no value is safe.
func Binding(session *tls.ConnectionState) (string, error) {
	if session == nil {
		return "", errors.New("couldn't bind request: no TLS session")
	}
	// The context is empty, not absent: TLS 1.2 distinguishes the two.
	value, err := session.ExportKeyingMaterial(exporterLabel, []byte{}, exporterLength)
	if err != nil {
		return "", fmt.Errorf("couldn't bind request: %w", err)
	}
	return base64.StdEncoding.EncodeToString(value), nil
}

// bound reports whether the challengePassword of the request binds it to this
// session. One that has the form of a binding but is another session's is
// refused: a client passes on what it did not sign. Anything else in the
// attribute is none of our business, unless bindings are required or there are
// several of them. csr that is no request is left for the Enroller to refuse.
func (s *Server) bound(session *tls.ConnectionState, csr []byte) (bool, error) {
	req, err := pkcs10.Parse(csr)
	if err != nil {
		return false, nil
	}
	challenge, err := req.Challenge()
	if err != nil {
		return false, err
	}
	shown := []byte(challenge)
	// An error means that this session has no such value, so nothing matches.
	if want, err := Binding(session); err == nil && subtle.ConstantTimeCompare(shown, []byte(want)) == 1 {
		return true, nil
	}
	// Clients of RFC 7030 know this one only. Go leaves it empty in TLS 1.3, and in
	// resumed sessions where it would prove nothing.
	if unique := session.TLSUnique; len(unique) > 0 {
		want := base64.StdEncoding.EncodeToString(unique)
		if subtle.ConstantTimeCompare(shown, []byte(want)) == 1 {
			return true, nil
		}
	}
	if value, err := base64.StdEncoding.Strict().DecodeString(challenge); err == nil && len(value) == exporterLength {
		return false, countersign.Errorf(countersign.BadSignature, "the request is bound to another TLS session").
			WithNext("make a new request on the connection that carries it")
	}
	if s.RequireBinding {
		return false, countersign.Errorf(countersign.BadSignature, "the request is not bound to its TLS session").
			WithNext("put the base64 of tls-exporter (RFC 9266) into challengePassword")
	}
	return false, nil
}
