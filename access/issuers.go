package access

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"

	"github.com/countersign-iot/countersign/store"
)

// maxIssuers bounds the CA certificates that are kept parsed, some KiB each. If more are
// in use, some of them are read from the database again.
const maxIssuers = 512

// issuers caches CA certificates by fingerprint. An entry never becomes stale, because the
// fingerprint covers the whole certificate.
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
