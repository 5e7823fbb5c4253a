package est

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"net/http"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/cms"
	"github.com/countersign-iot/countersign/pkcs10"
)

var (
	oidDecryptKeyID  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 37} // RFC 4108, 2.2.5
	oidAsymmetricID  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 54} // RFC 7030, 4.4.1.2
	oidCapabilities  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 15}        // RFC 8551, 2.5.2
	ourCapabilityIDs = []asn1.ObjectIdentifier{
		{2, 16, 840, 1, 101, 3, 4, 1, 42}, // AES-256 in CBC mode, for the key
		{1, 2, 840, 113549, 1, 1, 7},      // RSAES-OAEP
		{1, 3, 132, 1, 11, 1},             // ECDH with SHA-256
		{2, 16, 840, 1, 101, 3, 4, 1, 45}, // AES-256 Key Wrap
	}
)

// KeyID returns what a request holds as AsymmetricDecryptKeyIdentifier to have the
// key that the server makes encrypted for the key of the client certificate: its
// subject key identifier, or, if it has none, the SHA-256 of its
// SubjectPublicKeyInfo.
func KeyID(cert *x509.Certificate) []byte {
	if len(cert.SubjectKeyId) > 0 {
		return cert.SubjectKeyId
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return sum[:]
}

// recipient returns whom the request wants the key encrypted for, nil if TLS is
// enough for it (RFC 7030, 4.4.1). What cannot be done is refused: to send the
// key in the clear instead would be the opposite of what was asked.
func (s *Server) recipient(r *http.Request, fleet string, req *pkcs10.Request) (*cms.Recipient, error) {
	symmetric, err := req.Attribute(oidDecryptKeyID)
	if err != nil {
		return nil, err
	}
	asymmetric, err := req.Attribute(oidAsymmetricID)
	if err != nil || symmetric == nil && asymmetric == nil {
		return nil, err
	}
	if symmetric != nil && asymmetric != nil {
		return nil, countersign.Errorf(countersign.BadRequest, "the request wants the key encrypted in two ways").
			WithNext("put DecryptKeyIdentifier or AsymmetricDecryptKeyIdentifier into it, not both")
	}
	if s.KeySigner == nil {
		return nil, countersign.Errorf(countersign.NotAllowed, "keys are not delivered encrypted here").
			WithNext("leave the key identifier out of the request; TLS protects the key")
	}
	if err := checkCapabilities(req); err != nil {
		return nil, err
	}
	if symmetric != nil {
		return s.secretRecipient(r, fleet, symmetric)
	}
	return certRecipient(r, asymmetric)
}

// checkCapabilities wants something of ours among the algorithms of an
// SMIMECapabilities attribute. Without one, the client takes what comes.
func checkCapabilities(req *pkcs10.Request) error {
	a, err := req.Attribute(oidCapabilities)
	if a == nil {
		return err
	}
	value, err := a.Value()
	if err != nil {
		return err
	}
	var list cryptobyte.String
	in := cryptobyte.String(value)
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return errCapabilities
	}
	for !list.Empty() {
		var one cryptobyte.String
		var id asn1.ObjectIdentifier
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&id) {
			return errCapabilities
		}
		if slices.ContainsFunc(ourCapabilityIDs, id.Equal) {
			return nil
		}
	}
	return countersign.Errorf(countersign.BadRequest, "the request names no algorithm that keys are encrypted with here").
		WithNext("list AES-256 in CBC mode among its SMIMECapabilities")
}

var errCapabilities = countersign.Errorf(countersign.BadRequest, "the SMIMECapabilities of the request are malformed").
	WithNext("correct them, or leave them out")

// readKeyID reads the one OCTET STRING of either attribute.
func readKeyID(a *pkcs10.Attribute) ([]byte, error) {
	value, err := a.Value()
	if err != nil {
		return nil, err
	}
	in := cryptobyte.String(value)
	var id cryptobyte.String
	if !in.ReadASN1(&id, cbasn1.OCTET_STRING) || !in.Empty() || len(id) == 0 {
		return nil, countersign.Errorf(countersign.BadRequest, "the key identifier of the request is malformed").
			WithNext("give one OCTET STRING")
	}
	return id, nil
}

func (s *Server) secretRecipient(r *http.Request, fleet string, a *pkcs10.Attribute) (*cms.Recipient, error) {
	id, err := readKeyID(a)
	if err != nil {
		return nil, err
	}
	if s.SharedKey == nil {
		return nil, countersign.Errorf(countersign.NotFound, "no secret key is known under that identifier").
			WithNext("use AsymmetricDecryptKeyIdentifier with the key of the client certificate")
	}
	secret, err := s.SharedKey(r.Context(), fleet, id)
	if err != nil {
		return nil, err
	}
	return &cms.Recipient{Secret: secret, SecretID: id}, nil
}

// certRecipient finds the key among those that we know the client to hold: that
// of its certificate, which TLS proved.
func certRecipient(r *http.Request, a *pkcs10.Attribute) (*cms.Recipient, error) {
	id, err := readKeyID(a)
	if err != nil {
		return nil, err
	}
	if len(r.TLS.PeerCertificates) == 0 || !bytes.Equal(id, KeyID(r.TLS.PeerCertificates[0])) {
		return nil, countersign.Errorf(countersign.NotFound, "no public key is known under that identifier").
			WithNext("connect with a client certificate and give its subject key identifier")
	}
	cert := r.TLS.PeerCertificates[0]
	// RFC 7030, 4.4.1.2: the certificate must allow it, or be silent.
	want := map[x509.PublicKeyAlgorithm]x509.KeyUsage{
		x509.RSA: x509.KeyUsageKeyEncipherment, x509.ECDSA: x509.KeyUsageKeyAgreement,
	}[cert.PublicKeyAlgorithm]
	if want == 0 || cert.KeyUsage != 0 && cert.KeyUsage&want == 0 {
		return nil, countersign.Errorf(countersign.BadRequest, "the key of the client certificate may not encrypt keys").
			WithNext("use an RSA certificate for keyEncipherment, or an EC one for keyAgreement")
	}
	return &cms.Recipient{Certificate: cert}, nil
}
