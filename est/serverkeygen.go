package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/cms"
	"github.com/countersign-iot/countersign/pkcs10"
)

const (
	// maxGenerating is how many keys are made at once. An RSA key may take a core
	// for a second, and the evidence is judged only after.
	maxGenerating = 2

	mediaTypePKCS8 = "application/pkcs8"
	mediaTypeMixed = "multipart/mixed"
	mediaTypeKey   = mediaTypePKCS7 + "; smime-type=server-generated-key"
)

// KeyGenerator makes keys for devices that cannot.
type KeyGenerator interface {
	// GenerateKey makes a key of a kind that the fleet's profile allows; fleet is
	// empty for the default one. Where the profile wants keys made on the device it
	// returns NotAllowed. The key is one that PKCS #8 can hold, and it is not kept.
	GenerateKey(ctx context.Context, fleet string) (crypto.Signer, error)
}

// serverKeyGen answers /serverkeygen (RFC 7030, 4.4). All that can fail does so
// before a certificate is issued.
func (s *Server) serverKeyGen(w http.ResponseWriter, r *http.Request, fleet string) error {
	token, err := credential(r)
	if err != nil {
		return err
	}
	if token == "" && len(r.TLS.PeerCertificates) == 0 {
		return errNoEvidence("serverkeygen")
	}
	req := s.newRequest(r, fleet, token)
	if req.Asked, err = s.readCSR(w, r); err != nil {
		return err
	}
	// RFC 7030, 4.4.1: key and signature of the request mean nothing here.
	asked, err := pkcs10.Parse(req.Asked)
	if err != nil {
		return err
	}
	to, err := s.recipient(r, fleet, asked)
	if err != nil {
		return err
	}
	key, err := s.generateKey(r.Context(), fleet)
	if err != nil {
		return err
	}
	mediaType, packed, err := s.packKey(key, to)
	if err != nil {
		return err
	}
	defer clear(packed)
	req.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		RawSubject: asked.RawSubject, ExtraExtensions: asked.Extensions,
	}, key)
	if err != nil {
		return countersign.Errorf(countersign.BadRequest, "the request can't be repeated with another key").WithCause(err).
			WithNext("ask for a subject and subject alternative names alone")
	}
	grant, err := s.enrollOrReenroll(r.Context(), req)
	if err != nil {
		return err
	}
	if err := checkPair(grant.Leaf, key.Public()); err != nil {
		return err
	}
	return s.writeKey(w, r, part{mediaType, packed}, grant.Leaf)
}

func (s *Server) generateKey(ctx context.Context, fleet string) (crypto.Signer, error) {
	defer s.generating.Add(-1)
	if s.generating.Add(1) > maxGenerating {
		return nil, countersign.Errorf(countersign.RateLimited, "too many keys are being made").WithNext("try again").WithRetry(time.Second)
	}
	return s.Keys.GenerateKey(ctx, fleet)
}

// enrollOrReenroll goes by the evidence, because the path does not say which: a client
// certificate alone is the device's current one, or, if no authority of ours
// issued it, a manufacturer's that earns a first one.
func (s *Server) enrollOrReenroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	if req.Evidence.Token != "" {
		return s.Enroller.Enroll(ctx, req)
	}
	grant, err := s.Enroller.Reenroll(ctx, req)
	if countersign.CodeOf(err) == countersign.CertUnknown {
		return s.Enroller.Enroll(ctx, req)
	}
	return grant, err
}

// packKey returns the key as the answer holds it: PKCS #8 within TLS alone, or
// signed and encrypted if there is a recipient to encrypt for.
func (s *Server) packKey(key crypto.Signer, to *cms.Recipient) (mediaType string, packed []byte, err error) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", nil, fmt.Errorf("answer serverkeygen: %w", err)
	}
	if to == nil {
		return mediaTypePKCS8, pkcs8, nil
	}
	defer clear(pkcs8)
	signer, certs, err := s.keySigner()
	if err != nil {
		return "", nil, fmt.Errorf("answer serverkeygen: %w", err)
	}
	if packed, err = cms.SealKey(pkcs8, *to, signer, certs...); err != nil {
		return "", nil, fmt.Errorf("answer serverkeygen: %w", err)
	}
	return mediaTypeKey, packed, nil
}

func (s *Server) keySigner() (crypto.Signer, []*x509.Certificate, error) {
	chain, err := s.KeySigner()
	if err != nil {
		return nil, nil, err
	}
	return signerOf(chain)
}

func signerOf(chain *tls.Certificate) (crypto.Signer, []*x509.Certificate, error) {
	signer, ok := chain.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, errors.New("the key of the key signer cannot sign")
	}
	certs := make([]*x509.Certificate, len(chain.Certificate))
	for i, der := range chain.Certificate {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, nil, fmt.Errorf("certificate %d of the key signer: %w", i+1, err)
		}
	}
	return signer, certs, nil
}

// checkPair keeps a certificate from going out with a key that is not its own,
// as it would if the Enroller took the request for the retry of an earlier one.
func checkPair(leaf []byte, public crypto.PublicKey) error {
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		return fmt.Errorf("answer serverkeygen: %w", err)
	}
	if k, ok := public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(cert.PublicKey) {
		return errors.New("answer serverkeygen: the certificate is for another key")
	}
	return nil
}

// part is one part of a multipart answer, its content in DER.
type part struct {
	mediaType string
	content   []byte
}

// writeKey answers with the key and the certificate (RFC 7030, 4.4.2). The
// buffer is as large as it will ever get, so that the key leaves no copies behind
// in one that grew.
func (s *Server) writeKey(w http.ResponseWriter, r *http.Request, key part, leaf []byte) error {
	certs, err := cms.EncodeCertsOnly(leaf)
	if err != nil {
		return fmt.Errorf("answer serverkeygen: %w", err)
	}
	const headers = 1 << 10 // of both parts and three boundaries
	body := bytes.NewBuffer(make([]byte, 0, 2*(len(key.content)+len(certs))+headers))
	m := multipart.NewWriter(body)
	for _, p := range []part{key, {mediaTypeCertsOnly, certs}} {
		pw, err := m.CreatePart(textproto.MIMEHeader{"Content-Type": {p.mediaType}, "Content-Transfer-Encoding": {"base64"}})
		if err != nil {
			return fmt.Errorf("answer serverkeygen: %w", err)
		}
		text := encodeLines(p.content)
		_, err = pw.Write(text)
		clear(text)
		if err != nil {
			return fmt.Errorf("answer serverkeygen: %w", err)
		}
	}
	if err := m.Close(); err != nil {
		return fmt.Errorf("answer serverkeygen: %w", err)
	}
	defer clear(body.Bytes())
	h := w.Header()
	h.Set("Content-Type", mediaTypeMixed+"; boundary="+m.Boundary())
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	if _, err := w.Write(body.Bytes()); err != nil {
		s.log().InfoContext(r.Context(), "est answer not delivered", "remote", r.RemoteAddr, "err", err)
	}
	return nil
}
