package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	// DefaultCRLValidity is the time from thisUpdate to nextUpdate of a CRL for
	// device certificates. It is reissued at half of it and on each revocation.
	DefaultCRLValidity = 24 * time.Hour
	// rootCRLValidity is long because the root key should rest; a revoked issuing
	// authority is published at once all the same.
	rootCRLValidity = 180 * 24 * time.Hour
)

// Options of a CA.
type Options struct {
	DB          *store.DB
	Keys        *keystore.Store
	Now         func() time.Time
	Log         *slog.Logger
	StatusURL   string                 // base of the URLs in certificates, e.g. http://ca.example.net:8090
	CRLValidity time.Duration          // zero: DefaultCRLValidity
	Passphrase  func() ([]byte, error) // of the root key; nil: the key is not wrapped
	// WeakKeys lists keys that are known to be weak, beside those that are built in; no
	// key that is on it enters, by whatever door. nil: none.
	WeakKeys *weakkey.Blocklist
	// Cacheable reports whether this process is notified at once of every revocation in
	// the database, so that signed answers may be given again. Whoever says yes
	// after a no has called Forget for what was missed. nil: it does.
	Cacheable func() bool
}

// CA keeps the authorities and signs for them. Make it with Open.
type CA struct {
	Options

	serials serials
	answers answers
	shared  sharedLists
	// published are the newest lists that this process knows of.
	published publishedLists
	// newKeys are those of certificates that were recorded, for PrimeCheck.
	newKeys chan deviceKey

	reading     sync.Mutex // held while a registered authority is read again
	mu          sync.RWMutex
	authorities map[string]*authority // by id
}

// authority is a managed CA with its key at hand.
type authority struct {
	countersign.Authority
	names     issuerNames
	anchor    attest.Anchor // of a registered authority
	responder responder
	trust     trust // of a registered authority, without its lists
	version   int64 // counts its changes on record

	mu     sync.Mutex
	signer crypto.Signer // opened on first use
}

// Open loads the authorities on record. It opens no key.
func Open(ctx context.Context, o Options) (*CA, error) {
	if o.CRLValidity == 0 {
		o.CRLValidity = DefaultCRLValidity
	}
	if o.Cacheable == nil {
		o.Cacheable = func() bool { return true }
	}
	c := &CA{Options: o, authorities: map[string]*authority{}, newKeys: make(chan deviceKey, maxArrived)}
	c.serials = serials{db: o.DB, now: o.Now}
	return c, c.Reload(ctx)
}

// Reload reads the authorities again, after this or another node changed one. Lists of
// registered ones are parsed again only where they changed.
func (c *CA) Reload(ctx context.Context) error {
	found, err := c.readAuthorities(ctx)
	if err != nil {
		return err
	}
	for _, a := range found {
		if a.Kind == countersign.RegisteredAuthority {
			if _, err := c.Anchor(ctx, c.DB, a.ID, a.version); err != nil {
				return err
			}
			continue
		}
		c.mu.Lock()
		if c.authorities[a.ID] == nil { // one that is there keeps its open key
			c.authorities[a.ID] = a
		}
		c.mu.Unlock()
	}
	return nil
}

func (c *CA) readAuthorities(ctx context.Context) (list []*authority, err error) {
	list, err = store.List(ctx, c.DB, func(row store.Row) (*authority, error) { return scanAuthority(row) }, `SELECT `+authorityColumns+` FROM authority`)
	if err != nil {
		return nil, fmt.Errorf("list authorities: %w", err)
	}
	return list, nil
}

// Authorities lists the authorities by id; roots first.
func (c *CA) Authorities() []countersign.Authority {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var list []countersign.Authority
	for _, a := range c.authorities {
		list = append(list, a.Authority)
	}
	slices.SortFunc(list, func(a, b countersign.Authority) int {
		if (a.Parent == "") != (b.Parent == "") {
			if a.Parent == "" {
				return -1
			}
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// Authority returns one authority.
func (c *CA) Authority(id string) (countersign.Authority, error) {
	a, err := c.authority(id)
	if err != nil {
		return countersign.Authority{}, err
	}
	return a.Authority, nil
}

func (c *CA) authority(id string) (*authority, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	a, ok := c.authorities[id]
	if !ok {
		return nil, countersign.Errorf(countersign.NotFound, "there is no authority %q", id).WithNext("look for it in the list of authorities")
	}
	return a, nil
}

// Chain returns the DER certificates of an authority and those above it, root last.
func (c *CA) Chain(id string) ([][]byte, error) {
	var chain [][]byte
	for id != "" {
		a, err := c.authority(id)
		if err != nil {
			return nil, err
		}
		chain = append(chain, a.Certificate.Raw)
		if id = a.Parent; len(chain) > maxChain {
			return nil, fmt.Errorf("authority %s has more than %d above it", id, maxChain)
		}
	}
	return chain, nil
}

// maxChain bounds the walk to a root: root, intermediate and issuing is three.
const maxChain = 8

// signerOf opens the authority's key, once.
func (c *CA) signerOf(a *authority) (crypto.Signer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.signer != nil {
		return a.signer, nil
	}
	if a.KeyURI == "" {
		return nil, countersign.Errorf(countersign.NotAllowed, "authority %s is registered: its key is not ours", a.ID)
	}
	var passphrase []byte
	if a.Kind == countersign.RootAuthority {
		var err error
		if passphrase, err = c.passphrase(); err != nil {
			return nil, err
		}
	}
	s, err := c.Keys.Open(a.KeyURI, passphrase)
	if err != nil {
		return nil, fmt.Errorf("open the key of authority %s: %w", a.ID, err)
	}
	want, ok := a.Certificate.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !want.Equal(s.Public()) {
		return nil, fmt.Errorf("open the key of authority %s: %w", a.ID, ErrOtherKey)
	}
	if a.Kind != countersign.RootAuthority { // a root key is used and let go
		a.signer = s
	}
	return s, nil
}

// keyID is the key identifier of RFC 7093, section 2, method 1: the leftmost 160
// bits of the SHA-256 of the public key.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	bits, err := publicKeyBits(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bits)
	return sum[:20], nil
}

func (c *CA) crlURL(issuer string, shard int) string {
	return fmt.Sprintf("%s/crl/%s/%d.crl", c.StatusURL, issuer, shard)
}

func (c *CA) issuerURL(issuer string) string { return fmt.Sprintf("%s/ca/%s.cer", c.StatusURL, issuer) }

func (c *CA) ocspURL() string { return c.StatusURL + "/ocsp" }
