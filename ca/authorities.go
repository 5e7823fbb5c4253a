package ca

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/weakkey"
)

// Options of a CA.
type Options struct {
	DB          *store.DB
	Keys        *keystore.Store
	Now         func() time.Time
	Log         *slog.Logger
	StatusURL   string        // base of the URLs in certificates, e.g. http://ca.example.net:8090
	CRLValidity time.Duration // zero: DefaultCRLValidity
	// Passphrase returns the passphrase of the root key; nil: the key is not wrapped. A
	// function, because it is read only where the key is.
	Passphrase func() ([]byte, error)
	// WeakKeys lists keys that are known to be weak, beside those that are built in; no
	// key that is on it is certified, whichever door asks. nil: none.
	WeakKeys *weakkey.Blocklist
	// Cacheable reports whether this process is notified at once of every revocation in
	// the database, so that a signed answer may be returned again. Where it returns true
	// after false, Forget has been called for what was missed. nil: it is notified.
	Cacheable func() bool
}

// authority is one CA with its key at hand if it is managed, or its trust anchor if it
// is registered.
type authority struct {
	countersign.Authority
	names   issuerNames
	status  statusURLs     // of a managed one
	anchor  *attest.Anchor // of a registered authority
	version int64          // counts its changes on record

	mu     sync.Mutex
	signer *signer // opened on first use
}

// issuerNames are the hashes of an issuer's name and key by which an OCSP request names
// it. RFC 6960 clients use SHA-1; it secures nothing.
type issuerNames map[crypto.Hash]struct{ name, key []byte }

func namesOf(cert *x509.Certificate) issuerNames {
	key, err := encodeKey(cert.PublicKey)
	if err != nil {
		return nil // a key type that cannot be named in OCSP: never matches
	}
	names := issuerNames{}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		names[h] = struct{ name, key []byte }{digest(h, cert.RawSubject), digest(h, key.bits)}
	}
	return names
}

func (n issuerNames) match(id countersign.CertID) bool {
	own, known := n[id.Hash]
	return known && bytes.Equal(own.name, id.IssuerNameHash) && bytes.Equal(own.key, id.IssuerKeyHash)
}

const authorityColumns = `id, kind, parent, certificate, key_uri, state, created_at, version`

func scanAuthority(row store.Row, extra ...any) (*authority, error) {
	a := &authority{}
	var der []byte
	var created int64
	err := row.Scan(append([]any{&a.ID, &a.Kind, &a.Parent, &der, &a.KeyURI, &a.State, &created, &a.version}, extra...)...)
	if err != nil {
		return nil, store.Wrap(err)
	}
	a.CreatedAt = store.Time(created)
	if a.Certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse the certificate of authority %s: %w", a.ID, err)
	}
	a.Subject, a.names = a.Certificate.Subject.String(), namesOf(a.Certificate)
	return a, nil
}

// authorities are those on record as this process read them last, with their keys.
type authorities struct {
	Options

	mu   sync.RWMutex
	byID map[string]*authority
}

func (c *authorities) authority(id string) (*authority, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	a, ok := c.byID[id]
	if !ok {
		return nil, countersign.Errorf(countersign.NotFound, "there is no authority %q", id).WithNext("look for it in the list of authorities")
	}
	return a, nil
}

// add puts an authority into memory. A managed one that is there keeps its open key.
func (c *authorities) add(a *authority) {
	a.status = c.statusOf(a.ID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.anchor != nil || c.byID[a.ID] == nil {
		c.byID[a.ID] = a
	}
}

// issuerOf returns the authority that an OCSP request names; nil if there is none.
func (c *authorities) issuerOf(id countersign.CertID) *authority {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, a := range c.byID {
		if a.names.match(id) {
			return a
		}
	}
	return nil
}

// Authorities lists the authorities by id; roots first.
func (c *authorities) Authorities() []countersign.Authority {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var list []countersign.Authority
	for _, a := range c.byID {
		list = append(list, a.Authority)
	}
	slices.SortFunc(list, func(a, b countersign.Authority) int {
		return cmp.Or(cmp.Compare(min(len(a.Parent), 1), min(len(b.Parent), 1)), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Authority returns one authority.
func (c *authorities) Authority(id string) (countersign.Authority, error) {
	a, err := c.authority(id)
	if err != nil {
		return countersign.Authority{}, err
	}
	return a.Authority, nil
}

// Issuer returns an authority's certificate, DER, for caIssuers (RFC 5280, 4.2.2.1).
func (c *authorities) Issuer(_ context.Context, id string) ([]byte, error) {
	a, err := c.authority(id)
	if err != nil {
		return nil, err
	}
	return a.Certificate.Raw, nil
}

// maxChain bounds the walk to a root: root, intermediate and issuing is three.
const maxChain = 8

// Chain returns the DER certificates of an authority and those above it, root last.
func (c *authorities) Chain(id string) ([][]byte, error) {
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

// ErrOtherKey means that a key is not the one in its authority's certificate.
var ErrOtherKey = errors.New("it is not the key in the authority's certificate")

// CheckSigner opens the key of a managed authority, compares it with the certificate
// and verifies one signature. It returns os.ErrNotExist, keystore.ErrPassphraseMissing
// or keystore.ErrPassphraseWrong, ErrOtherKey and ErrBadSignature, wrapped.
func (c *authorities) CheckSigner(id string) error {
	a, err := c.authority(id)
	if err != nil {
		return err
	}
	_, err = c.signerOf(a)
	return err
}

// signerOf opens the authority's key and has it sign once, to see that it can.
func (c *authorities) signerOf(a *authority) (*signer, error) {
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
	key, err := c.Keys.Open(a.KeyURI, passphrase)
	if err != nil {
		return nil, fmt.Errorf("open the key of authority %s: %w", a.ID, err)
	}
	want, ok := a.Certificate.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !want.Equal(key.Public()) {
		return nil, fmt.Errorf("open the key of authority %s: %w", a.ID, ErrOtherKey)
	}
	s, err := newSigner(key)
	if err != nil {
		return nil, fmt.Errorf("open the key of authority %s: %w", a.ID, err)
	}
	if a.Kind != countersign.RootAuthority { // a root key is used and let go
		a.signer = s
	}
	return s, nil
}

// passphrase returns the one of the root key; nil where there is none.
func (c *authorities) passphrase() ([]byte, error) {
	if c.Passphrase == nil {
		return nil, nil
	}
	p, err := c.Passphrase()
	if err != nil {
		return nil, fmt.Errorf("read the root passphrase: %w", err)
	}
	return p, nil
}

// AcceptKey checks a key that is to be certified against all that is known about
// it: type and size as CheckKey, and that it is not known to be weak.
func (c *authorities) AcceptKey(pub crypto.PublicKey) (kind string, err error) {
	if kind, err = CheckKey(pub); err != nil {
		return "", err
	}
	return kind, c.WeakKeys.Check(pub)
}

// statusURLs are where the status of an authority's certificates is found. They are the
// same in each certificate, which may share but not change them.
type statusURLs struct{ crl, ocsp, issuer []string }

func (c *authorities) statusOf(issuer string) statusURLs {
	return statusURLs{[]string{c.crlURL(issuer)}, []string{c.StatusURL + "/ocsp"}, []string{c.issuerURL(issuer)}}
}

func (c *authorities) crlURL(issuer string) string {
	return fmt.Sprintf("%s/crl/%s/0.crl", c.StatusURL, issuer)
}

func (c *authorities) issuerURL(issuer string) string {
	return fmt.Sprintf("%s/ca/%s.cer", c.StatusURL, issuer)
}

const (
	// defaultBackdate tolerates device clocks that are a little slow.
	defaultBackdate = 5 * time.Minute
	// statusBackdate is how far thisUpdate and producedAt of OCSP answers and CRLs are
	// before the signature, as notBefore of certificates is: a relying party whose clock
	// is a little slow would refuse every certificate after each revocation, because the
	// list that it fetches is not yet valid.
	statusBackdate = defaultBackdate
)

// backdated is what a list or answer that is signed now has for thisUpdate: never
// before the authority's own notBefore, which a responder's certificate keeps to too.
func (a *authority) backdated(now time.Time) time.Time {
	this := now.Add(-statusBackdate)
	if from := a.Certificate.NotBefore.UTC(); this.Before(from) {
		return from
	}
	return this
}

// shownRevocation is the time of a revocation in a list or answer of thisUpdate. A
// revocation that is younger than statusBackdate is dated back with it: that a
// certificate will be revoked is no status (RFC 5280, 5.1.2.6; RFC 6960, 2.2).
func shownRevocation(at, thisUpdate time.Time) time.Time {
	if at.After(thisUpdate) {
		return thisUpdate
	}
	return at
}
