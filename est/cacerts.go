package est

import (
	"fmt"
	"net/http"

	"github.com/countersign-iot/countersign/cms"
)

const mediaTypePKCS7 = "application/pkcs7-mime"

// caCerts answers /cacerts (RFC 7030, 4.1). Anyone may ask.
func (s *Server) caCerts(w http.ResponseWriter, r *http.Request, fleet string) error {
	chain, err := s.Trust.CACerts(r.Context(), fleet)
	if err != nil {
		return err
	}
	der, err := cms.EncodeCertsOnly(chain...)
	if err != nil {
		return fmt.Errorf("answer cacerts: %w", err)
	}
	return s.write(w, r, mediaTypePKCS7, der)
}
