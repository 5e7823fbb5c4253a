package ca

import (
	"context"
	"crypto"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// crlEntries encodes the revokedCertificates. An entry stays until one CRL after
// the certificate has expired (RFC 5280, 3.3).
func crlEntries(ctx context.Context, rd store.Reader, l *countersign.CRL) (der []byte, n int, err error) {
	type entry struct {
		serial string
		reason int
		at     int64
	}
	var bin []byte
	for e, err := range store.Rows(ctx, rd, func(row store.Row) (e entry, err error) {
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
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addExtension(b, oidAuthorityKeyID, func(b *cryptobyte.Builder) { addAuthorityKeyID(b, a.Certificate.SubjectKeyId) })
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
