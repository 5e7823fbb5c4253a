package status

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
)

const mediaTypeCRL = "application/pkix-crl" // RFC 2585, 4.2

// crl serves /crl/{authority}/{shard}.crl (RFC 5280, 4.2.1.13). A list can have tens of
// megabytes, so it is read only if it is sent.
func (s *Server) crl(w http.ResponseWriter, r *http.Request, path string) {
	issuer, shard, ok := splitCRLPath(path)
	if !ok {
		s.refuse(w, r, errNoPath)
		return
	}
	l, err := s.Authority.CRLRecord(r.Context(), issuer, shard)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	body := &listBody{ctx: r.Context(), authority: s.Authority, list: l}
	defer body.close()
	if r.Method == http.MethodGet && !strings.Contains(r.Header.Get("If-None-Match"), etagOf(l)) {
		// Open the list before the header is sent, so that a failure can be answered.
		if err := body.open(); err != nil {
			s.refuse(w, r, err)
			return
		}
		l = body.list
	}
	s.serve(w, r, file{mediaTypeCRL, etagOf(l), l.ThisUpdate, l.NextUpdate, body})
}

// etagOf returns the entity tag of a list. The CRL number increases with every list (RFC
// 5280, 5.2.3); the time distinguishes lists of two installations at one address.
func etagOf(l *countersign.CRL) string {
	return quoted(l.Issuer, strconv.Itoa(l.Shard), strconv.FormatInt(l.Number, 10), strconv.FormatInt(l.ThisUpdate.Unix(), 10))
}

// listBody is the content of a list for net/http, which first seeks to its end for the size
// and reads it only if it is sent.
type listBody struct {
	ctx       context.Context //nolint:containedctx // of the one request that the body is for
	authority Authority
	list      *countersign.CRL
	octets    io.ReadSeekCloser // nil before open
	at        int64
}

func (b *listBody) open() (err error) {
	b.list, b.octets, err = b.authority.OpenCRL(b.ctx, b.list.Issuer, b.list.Shard)
	return err
}

func (b *listBody) Read(p []byte) (int, error) {
	if b.octets == nil {
		promised := etagOf(b.list)
		if err := b.open(); err != nil {
			return 0, err
		}
		if etagOf(b.list) != promised {
			return 0, errors.New("the list was superseded after its header was sent")
		}
		if _, err := b.octets.Seek(b.at, io.SeekStart); err != nil {
			return 0, err
		}
	}
	return b.octets.Read(p)
}

func (b *listBody) Seek(offset int64, whence int) (int64, error) {
	if b.octets != nil {
		return b.octets.Seek(offset, whence)
	}
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.list.Size
	}
	b.at = offset
	return offset, nil
}

func (b *listBody) close() {
	if b.octets != nil {
		_ = b.octets.Close() // it only decreases the number of readers
	}
}

func splitCRLPath(path string) (issuer string, shard int, ok bool) {
	rest, isFile := strings.CutSuffix(strings.TrimPrefix(path, "/crl/"), ".crl")
	issuer, number, cut := strings.Cut(rest, "/")
	if !isFile || !cut || countersign.CheckName(issuer) != nil {
		return "", 0, false
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != number { // each list has only one address
		return "", 0, false
	}
	return issuer, int(n), true
}
