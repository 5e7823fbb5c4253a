package status

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
)

const mediaTypeCRL = "application/pkix-crl" // RFC 2585, 4.2

// crl answers /crl/{authority}/{shard}.crl (RFC 5280, 4.2.1.13).
func (s *Server) crl(w http.ResponseWriter, r *http.Request, path string) {
	issuer, shard, ok := splitCRLPath(path)
	if !ok {
		s.refuse(w, r, errNoPath)
		return
	}
	l, err := s.Authority.CRL(r.Context(), issuer, shard)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	// The CRL number grows with every list (RFC 5280, 5.2.3); the time tells apart
	// what two installations published at one address.
	etag := quoted(l.Issuer, strconv.Itoa(l.Shard), strconv.FormatInt(l.Number, 10), strconv.FormatInt(l.ThisUpdate.Unix(), 10))
	s.serve(w, r, file{mediaTypeCRL, etag, l.ThisUpdate, l.NextUpdate, l.DER})
}

func splitCRLPath(path string) (issuer string, shard int, ok bool) {
	rest, isFile := strings.CutSuffix(strings.TrimPrefix(path, "/crl/"), ".crl")
	issuer, number, cut := strings.Cut(rest, "/")
	if !isFile || !cut || countersign.CheckName(issuer) != nil {
		return "", 0, false
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != number { // one address for one list
		return "", 0, false
	}
	return issuer, int(n), true
}
