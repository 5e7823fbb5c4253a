package status

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

const mediaTypeCert = "application/pkix-cert" // RFC 2585, 4.1

// issuerAge is how long caches may keep a CA certificate, which changes once in years.
const issuerAge = 24 * time.Hour

// caIssuers serves /ca/{authority}.cer (RFC 5280, 4.2.2.1).
func (s *Server) caIssuers(w http.ResponseWriter, r *http.Request, path string) {
	id, isFile := strings.CutSuffix(strings.TrimPrefix(path, "/ca/"), ".cer")
	if !isFile || countersign.CheckName(id) != nil {
		s.refuse(w, r, errNoPath)
		return
	}
	der, err := s.Authority.Issuer(r.Context(), id)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	sum := sha256.Sum256(der)
	// No Last-Modified, because the time when the authority changed its certificate is not
	// known here.
	s.serve(w, r, file{
		mediaType: mediaTypeCert, etag: quoted(hex.EncodeToString(sum[:16])),
		nextUpdate: s.Now().Add(issuerAge), content: bytes.NewReader(der),
	})
}
