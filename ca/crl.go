package ca

import (
	"context"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// listed is what a list shows of a certificate.
type listed struct {
	serial string
	reason int
	at     int64
}

// readListed reads the entries of a list, made anew from the certificates on record. One
// stays until one CRL after its certificate has expired (RFC 5280, 3.3), and longer where
// later lists only follow changes.
func readListed(ctx context.Context, rd store.Reader, l *countersign.CRL) ([]*chunk, error) {
	var c chunker
	var der []byte
	for e, err := range store.Rows(ctx, rd, func(row store.Row) (e listed, err error) {
		err = row.Scan(&e.serial, &e.reason, &e.at)
		return e, err
	}, `SELECT serial, reason, revoked_at FROM certificate
		WHERE issuer = $1 AND shard = $2 AND state IN ('revoked', 'held') AND not_after >= $3`,
		l.Issuer, l.Shard, store.Micros(leavesBefore(l))) {
		if err != nil {
			return nil, fmt.Errorf("read revoked certificates: %w", err)
		}
		if der, err = e.appendTo(der[:0], l); err != nil {
			return nil, err
		}
		c.add(der)
	}
	return c.chunks, nil
}

// leavesBefore is when a certificate has to have expired to leave the list.
func leavesBefore(l *countersign.CRL) time.Time {
	return l.ThisUpdate.Add(-l.NextUpdate.Sub(l.ThisUpdate))
}

// appendTo appends the entry as a list of thisUpdate shows it first.
func (e *listed) appendTo(der []byte, l *countersign.CRL) ([]byte, error) {
	serial, err := octetsOf(e.serial)
	if err != nil {
		return nil, err
	}
	return appendEntry(der, serial, shownRevocation(store.Time(e.at), l.ThisUpdate), countersign.ReasonCode(e.reason)), nil
}

// octetsOf returns the octets of a serial number on record.
func octetsOf(serial string) ([]byte, error) {
	b, err := hex.DecodeString(serial)
	if err == nil && (len(b) == 0 || len(b) > serialOctets) {
		err = fmt.Errorf("it has %d octets, not 1 to %d", len(b), serialOctets)
	}
	if err != nil {
		return nil, fmt.Errorf("serial %q on record: %w", serial, err)
	}
	return b, nil
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

// signCRL signs a CertificateList (RFC 5280, 5.1) around the entries, which are hashed
// where they are: a list of a million entries is copied nowhere.
func signCRL(a *authority, s *signer, l *countersign.CRL, chunks []*chunk) (*content, error) {
	c := &content{chunks: chunks}
	before, after, err := aroundEntries(a, s.alg, l)
	if err != nil {
		return nil, err
	}
	var octets int64
	if l.Entries, octets = c.entries(); l.Entries > 0 { // absent when nothing is revoked
		before = appendHeader(before, 0x30, octets)
	}
	c.head = append(appendHeader(nil, 0x30, int64(len(before))+octets+int64(len(after))), before...)
	c.tail = after
	sig, err := s.sign(slices.Collect(c.parts)...)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(c.tail)
	b.AddBytes(s.alg)
	b.AddASN1BitString(sig)
	if c.tail, err = b.Bytes(); err != nil {
		return nil, err
	}
	c.head = append(appendHeader(nil, 0x30, c.size()), c.head...)
	l.Size = c.size()
	return c, nil
}

// aroundEntries encodes the fields of TBSCertList before and behind revokedCertificates.
func aroundEntries(a *authority, alg []byte, l *countersign.CRL) (before, after []byte, err error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1Int64(1) // v2
	b.AddBytes(alg)
	b.AddBytes(a.Certificate.RawSubject)
	addTime(b, l.ThisUpdate)
	addTime(b, l.NextUpdate)
	if before, err = b.Bytes(); err != nil {
		return nil, nil, err
	}
	b = cryptobyte.NewBuilder(nil)
	b.AddASN1(context0, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addExtension(b, oidAuthorityKeyID, func(b *cryptobyte.Builder) { addAuthorityKeyID(b, a.Certificate.SubjectKeyId) })
			addExtension(b, oidCRLNumber, func(b *cryptobyte.Builder) { b.AddASN1Int64(l.Number) })
		})
	})
	after, err = b.Bytes()
	return before, after, err
}

// appendHeader appends a tag and a length (X.690, 8.1.3).
func appendHeader(b []byte, tag byte, length int64) []byte {
	if length < 0x80 {
		return append(b, tag, byte(length)) //nolint:gosec // it is below 0x80
	}
	var octets []byte
	for ; length > 0; length >>= 8 {
		octets = append(octets, byte(length&0xff))
	}
	slices.Reverse(octets)
	return append(append(b, tag, 0x80|byte(len(octets))), octets...) //nolint:gosec // at most 8
}

var (
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
)
