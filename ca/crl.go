package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// CRL reads the published list of an authority with its octets. Those who only need
// to know which one it is ask CRLRecord; doors open it with OpenCRL. It fails with
// Unavailable while the database has an older list than was published before.
func (c *CA) CRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	name := listName{issuer, shard}
	before := c.published.last(name)
	l, err := c.readCRL(ctx, issuer, shard)
	if err != nil && (countersign.CodeOf(err) != countersign.NotFound || before.number == 0) {
		return nil, err
	}
	if err := c.published.check(name, before, l); err != nil {
		return nil, err
	}
	return l, nil
}

func (c *CA) readCRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	l := &countersign.CRL{Issuer: issuer, Shard: shard}
	var this, next int64
	err := c.DB.QueryRow(ctx, `SELECT published, this_update, next_update, entries, der FROM crl WHERE issuer = $1 AND shard = $2`, issuer, shard).
		Scan(&l.Number, &this, &next, &l.Entries, &l.DER)
	if errors.Is(err, sql.ErrNoRows) || err == nil && l.Number == 0 {
		return nil, countersign.Errorf(countersign.NotFound, "there is no CRL %s/%d", issuer, shard)
	}
	if err != nil {
		return nil, fmt.Errorf("read CRL %s/%d: %w", issuer, shard, err)
	}
	l.ThisUpdate, l.NextUpdate, l.Size = store.Time(this), store.Time(next), int64(len(l.DER))
	return l, nil
}

// Publish signs and records a new CRL. The number is taken first, so that two
// nodes never sign the same one, and the one with the higher number stays. Where the
// database was set back, the number is above those that were published before.
func (c *CA) Publish(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	a, err := c.authority(issuer)
	if err != nil {
		return nil, err
	}
	l := &countersign.CRL{Issuer: issuer, Shard: shard}
	if err := c.takeNumber(ctx, l); err != nil {
		return nil, fmt.Errorf("number CRL %s/%d: %w", issuer, shard, err)
	}
	now := c.Now().UTC().Truncate(time.Second)
	l.ThisUpdate, l.NextUpdate = a.backdated(now), now.Add(c.crlValidity(a))
	entries, n, err := c.crlEntries(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Entries = n
	signer, err := c.signerOf(a)
	if err != nil {
		return nil, err
	}
	if l.DER, err = encodeCRL(a, signer, l, entries); err != nil {
		return nil, fmt.Errorf("sign CRL %s/%d: %w", issuer, shard, err)
	}
	if int64(len(l.DER)) <= c.DB.Reserve().Left/reserveShare {
		ctx = store.Emergency(ctx)
	}
	var rows int64 // none: another node published a newer list meanwhile
	err = c.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		rows, err = tx.Exec(ctx, `UPDATE crl SET published = $3, this_update = $4, next_update = $5, entries = $6, der = $7
			WHERE issuer = $1 AND shard = $2 AND published < $3`,
			issuer, shard, l.Number, store.Micros(l.ThisUpdate), store.Micros(l.NextUpdate), l.Entries, l.DER)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("record CRL %s/%d: %w", issuer, shard, err)
	}
	if l.Size = int64(len(l.DER)); rows == 1 {
		c.shared.follow(l)
		return l, c.published.check(listName{issuer, shard}, lastList{}, l)
	}
	return l, nil
}

func (c *CA) takeNumber(ctx context.Context, l *countersign.CRL) error {
	last := c.published.last(listName{l.Issuer, l.Shard}).number
	return c.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `UPDATE crl SET number = CASE WHEN number < $3 THEN $4 ELSE number + 1 END WHERE issuer = $1 AND shard = $2 RETURNING number`,
			l.Issuer, l.Shard, last, last+numberMargin).Scan(&l.Number)
	})
}

// reserveShare bounds the part of the database's reserve that one list may take on a
// full disk: revocations themselves go first, since gateways and OCSP read those.
const reserveShare = 8

func (c *CA) crlValidity(a *authority) time.Duration {
	if a.Kind == countersign.RootAuthority {
		return rootCRLValidity
	}
	return c.CRLValidity
}

// Due lists the CRLs that have to be published: for their age, which is never published,
// or past half of their life, which began when they were signed; or since the database
// was set back and has an older one.
func (c *CA) Due(ctx context.Context) (due []countersign.CRL, err error) {
	before := c.published.all()
	type listed struct {
		countersign.CRL
		aged int
	}
	list, err := store.List(ctx, c.DB, func(row store.Row) (l listed, err error) {
		err = row.Scan(&l.Issuer, &l.Shard, &l.Number, &l.aged)
		return l, err
	}, `SELECT issuer, shard, published,
		CASE WHEN published = 0 OR this_update + $2 + (next_update - this_update - $2) / 2 <= $1 THEN 1 ELSE 0 END FROM crl`,
		store.Micros(c.Now()), statusBackdate.Microseconds())
	if err != nil {
		return nil, fmt.Errorf("list due CRLs: %w", err)
	}
	for _, l := range list {
		if last := before[listName{l.Issuer, l.Shard}]; l.aged == 1 || last.setBack || l.Number < last.number {
			due = append(due, l.CRL)
		}
	}
	return due, nil
}

// crlEntries encodes the revokedCertificates. An entry stays until one CRL after
// the certificate has expired (RFC 5280, 3.3).
func (c *CA) crlEntries(ctx context.Context, l *countersign.CRL) (der []byte, n int, err error) {
	type entry struct {
		serial string
		reason int
		at     int64
	}
	var bin []byte
	for e, err := range store.Rows(ctx, c.DB, func(row store.Row) (e entry, err error) {
		err = row.Scan(&e.serial, &e.reason, &e.at)
		return e, err
	}, `SELECT serial, reason, revoked_at FROM certificate
		WHERE issuer = $1 AND shard = $2 AND state IN ('revoked', 'held') AND not_after >= $3`,
		l.Issuer, l.Shard, store.Micros(l.ThisUpdate.Add(-l.NextUpdate.Sub(l.ThisUpdate)))) {
		if err != nil {
			return nil, 0, fmt.Errorf("read revoked certificates: %w", err)
		}
		bin, err = hex.AppendDecode(bin[:0], []byte(e.serial))
		if err == nil && (len(bin) == 0 || len(bin) > serialOctets) {
			err = fmt.Errorf("it has %d octets, not 1 to %d", len(bin), serialOctets)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("serial %q on record: %w", e.serial, err)
		}
		der = appendEntry(der, bin, shownRevocation(store.Time(e.at), l.ThisUpdate), countersign.ReasonCode(e.reason))
		n++
	}
	return der, n, nil
}

// appendEntry appends one entry of revokedCertificates (RFC 5280, 5.1.2.6) by hand:
// encoding a million of them through encoding/asn1 takes a gigabyte and seconds.
func appendEntry(dst, serial []byte, at time.Time, reason countersign.ReasonCode) []byte {
	pad := 0
	if serial[0]&0x80 != 0 {
		pad = 1
	}
	ext := 0
	if reason != countersign.Unspecified { // RFC 5280, 5.3.1: unspecified is left out
		ext = 2 + 2 + len(reasonExt) + 3
	}
	when, tag := utcOrGeneralized(at)
	dst = append(dst, 0x30, byte(2+pad+len(serial)+2+len(when)+ext)) //nolint:gosec // at most 54: one octet of length
	dst = append(dst, 0x02, byte(pad+len(serial)))                   //nolint:gosec // at most 21
	if pad == 1 {
		dst = append(dst, 0)
	}
	dst = append(dst, serial...)
	dst = append(dst, tag, byte(len(when))) //nolint:gosec // 13 or 15
	dst = append(dst, when...)
	if ext > 0 {
		dst = append(dst, 0x30, byte(ext-2), 0x30, byte(ext-4))
		dst = append(dst, reasonExt...)
		dst = append(dst, 0x0a, 0x01, byte(reason)) //nolint:gosec // 0 to 10, see Revoke
	}
	return dst
}

// reasonExt is the id of reasonCode and the head of its OCTET STRING.
var reasonExt = []byte{0x06, 0x03, 0x55, 0x1d, 0x15, 0x04, 0x03}

// utcOrGeneralized encodes a time as RFC 5280, 4.1.2.5 wants it: UTCTime through 2049.
func utcOrGeneralized(t time.Time) (text string, tag byte) {
	t = t.UTC()
	if t.Year() < 2050 {
		return t.Format("060102150405Z"), 0x17
	}
	return t.Format("20060102150405Z"), 0x18
}

// encodeCRL writes and signs a CertificateList (RFC 5280, 5.1).
func encodeCRL(a *authority, signer crypto.Signer, l *countersign.CRL, entries []byte) ([]byte, error) {
	alg, hash, err := algorithmOf(signer.Public())
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(entries)+1024))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1) // v2
		b.AddBytes(alg)
		b.AddBytes(a.Certificate.RawSubject)
		addTime(b, l.ThisUpdate)
		addTime(b, l.NextUpdate)
		if len(entries) > 0 { // absent when nothing is revoked
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(entries) })
		}
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addExtension(b, oidAuthorityKeyID, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(a.Certificate.SubjectKeyId) })
					})
				})
				addExtension(b, oidCRLNumber, func(b *cryptobyte.Builder) { b.AddASN1Int64(l.Number) })
			})
		})
	})
	tbs, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	return signed(signer, hash, alg, tbs)
}

var (
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
)

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

func addTime(b *cryptobyte.Builder, t time.Time) {
	text, tag := utcOrGeneralized(t)
	b.AddASN1(cbasn1.Tag(tag), func(b *cryptobyte.Builder) { b.AddBytes([]byte(text)) })
}

// signed wraps what was signed with algorithm and signature: the outer SEQUENCE of
// CertificateList and BasicOCSPResponse. It takes the parts as they are.
func signed(signer crypto.Signer, hash crypto.Hash, alg, tbs []byte, after ...[]byte) ([]byte, error) {
	digest := tbs
	if hash != 0 {
		h := hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	sig, err := signer.Sign(rand.Reader, digest, hash)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(sig)+256))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(alg)
		b.AddASN1BitString(sig)
		for _, a := range after {
			b.AddBytes(a)
		}
	})
	return b.Bytes()
}

// algorithmOf returns the AlgorithmIdentifier, DER, and hash to sign with under a
// key: the hash of the curve's size (RFC 5758, RFC 8410, RFC 4055).
func algorithmOf(pub crypto.PublicKey) (der []byte, hash crypto.Hash, err error) {
	var alg pkix.AlgorithmIdentifier
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256
		switch bits := k.Params().BitSize; {
		case bits > 384:
			alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512
		case bits > 256:
			alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384
		}
	case ed25519.PublicKey:
		alg.Algorithm = asn1.ObjectIdentifier{1, 3, 101, 112}
	case *rsa.PublicKey:
		alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256
		alg.Parameters = asn1.NullRawValue
	default:
		return nil, 0, fmt.Errorf("cannot sign with a %T", pub)
	}
	der, err = asn1.Marshal(alg)
	return der, hash, err
}
