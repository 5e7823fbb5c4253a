package access

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"

	"github.com/countersign-iot/countersign/store"
)

// maxIssuers bounds the certificates of CAs that are kept parsed, some KiB each. With more
// in use some are read at each judgment.
const maxIssuers = 512

// issuers keeps the certificates of CAs by fingerprint. What has a fingerprint never
// changes.
type issuers struct {
	mu sync.Mutex
	by map[string]*x509.Certificate
}

func (i *issuers) get(ctx context.Context, rd store.Reader, print string) (*x509.Certificate, error) {
	i.mu.Lock()
	known := i.by[print]
	i.mu.Unlock()
	if known != nil {
		return known, nil
	}
	var der []byte
	if err := rd.QueryRow(ctx, `SELECT der FROM issuer_certificate WHERE fingerprint = $1`, print).Scan(&der); err != nil {
		return nil, fmt.Errorf("couldn't read the certificate of a CA: %w", store.Wrap(err))
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse the certificate of a CA: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.by == nil || len(i.by) >= maxIssuers {
		i.by = map[string]*x509.Certificate{}
	}
	i.by[print] = cert
	return cert, nil
}
