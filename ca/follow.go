package ca

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

// maxIssuersTried bounds how many CAs below an authority are tried as the signer of a list.
const maxIssuersTried = 10_000

// Lists are revocation lists for a registered authority.
type Lists struct {
	CRLs          [][]byte // DER, of the authority, of CAs below it, or of their CRL issuers
	Intermediates [][]byte // DER, of signers that are not on record yet
	// Override replaces all lists on record on the operator's word, older ones too: a CA
	// that lost its state may count from 1 again.
	Override bool
}

// ErrListsMoved is returned by SetCRLs where the authority has changed since the plan was
// made. Plan again.
var ErrListsMoved = countersign.Errorf(countersign.Conflict, "the authority was changed at the same time").WithNext("try again")

// ListsPlan is a change of the lists of a registered authority, made by PlanCRLs for
// SetCRLs to record.
type ListsPlan struct {
	Changed bool // false: the lists on record are these already

	id      string
	version int64 // of the authority that it was made for
	trust   string
}

// PlanCRLs decides how the revocation lists of a registered authority follow. A list takes
// the place of the one by the same issuer with the same scope; the others stay. It refuses
// with Conflict a list that is not newer than the one on record (RFC 5280, 5.2.3), and
// with BadRequest one that no CA at or below the authority signed, or no list at all. It
// parses up to maxIssuersTried certificates, so call it outside of a transaction.
func (c *authorities) PlanCRLs(ctx context.Context, id string, l Lists) (*ListsPlan, error) {
	a, before, err := c.readRegistered(ctx, c.DB, id)
	if err != nil {
		return nil, err
	}
	t := before
	t.Intermediates = appendNew(before.Intermediates, l.Intermediates)
	t.CRLs = l.CRLs
	next, err := c.anchorOf(a.Certificate, t)
	if err != nil {
		return nil, err
	}
	if len(next.CRLs) == 0 && !l.Override {
		return nil, countersign.Errorf(countersign.BadRequest, "no revocation list was sent").
			WithNext("send the lists that changed; a list without entries is one too")
	}
	recorded, err := issuersBelow(ctx, c.DB, id, next.CRLs)
	if err != nil {
		return nil, err
	}
	old := a.anchor.CRLs
	if l.Override {
		old = nil
	}
	after, err := follow(old, next.CRLs, slices.Concat([]*x509.Certificate{a.Certificate}, next.Intermediates, recorded))
	if err != nil {
		return nil, err
	}
	if len(after) > maxLists {
		return nil, countersign.Errorf(countersign.TooLarge, "authority %s has %d revocation lists with these, more than %d", id, len(after), maxLists).
			WithNext("replace all lists on your word, without those of CAs that are no more")
	}
	t.CRLs = derOf(after)
	text, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode trust: %w", err)
	}
	same := len(t.Intermediates) == len(before.Intermediates) && slices.EqualFunc(old, after, (*attest.CRL).Same) && !l.Override
	return &ListsPlan{Changed: !same, id: id, version: a.version, trust: string(text)}, nil
}

// SetCRLs records the lists of a plan. It returns ErrListsMoved where the authority has
// changed since the plan was made. Call Reload after the commit.
func SetCRLs(ctx context.Context, tx *store.Tx, p *ListsPlan) error {
	rows, err := tx.Exec(ctx, `UPDATE authority SET trust = $3, version = version + 1 WHERE id = $1 AND version = $2 AND kind = 'registered'`, p.id, p.version, p.trust)
	if err != nil {
		return fmt.Errorf("record the lists of authority %s: %w", p.id, err)
	}
	if rows != 1 {
		return ErrListsMoved
	}
	return nil
}

// follow returns the lists that are in force once fresh ones have followed old ones. Each
// fresh list must be signed by one of the signers.
func follow(old, fresh []*attest.CRL, signers []*x509.Certificate) ([]*attest.CRL, error) {
	fresh = slices.SortedStableFunc(slices.Values(fresh), func(a, b *attest.CRL) int {
		return cmp.Or(a.Number().Cmp(b.Number()), a.ThisUpdate().Compare(b.ThisUpdate()))
	})
	var after []*attest.CRL
	at := map[string]int{} // index in after by slot
	for i, l := range slices.Concat(old, fresh) {
		signer := l.SignedBy(signers)
		isOld := i < len(old)
		if signer == nil && !isOld {
			return nil, countersign.Errorf(countersign.BadRequest, "no CA that is known at or below the authority signed the CRL of %s with number %d", l.IssuerName(), l.Number()).
				WithNext("load the list that the CA publishes; send the certificate of a CA below the authority with it, as an intermediate")
		}
		slot := slotOf(l, signer)
		j, taken := at[slot]
		if !taken {
			at[slot] = len(after)
			after = append(after, l)
			continue
		}
		switch err := l.Replaces(after[j]); {
		case err == nil:
			after[j] = l
		case !isOld && !l.Same(after[j]): // two old ones of one sequence are from before they had to follow each other
			return nil, err
		}
	}
	return after, nil
}

// slotOf names the sequence of lists that a list is in: of one issuer, by one key, with
// one scope. A list on record whose signer is not known any more is in one of its own.
func slotOf(l *attest.CRL, signer *x509.Certificate) string {
	key := ""
	if signer != nil {
		key = hexSum(signer.RawSubjectPublicKeyInfo)
	}
	return l.IssuerName() + " " + key + " " + l.Scope()
}

func derOf(lists []*attest.CRL) [][]byte {
	var all [][]byte
	for _, l := range lists {
		all = append(all, l.DER())
	}
	return all
}

func appendNew(list, more [][]byte) [][]byte {
	list = slices.Clone(list)
	for _, m := range more {
		if !slices.ContainsFunc(list, func(have []byte) bool { return string(have) == string(m) }) {
			list = append(list, m)
		}
	}
	return list
}

// issuersBelow reads the CAs on record, from the paths of devices' certificates, that have
// the name of the issuer of one of the lists. They led to the authority or to another one;
// a list is only used together with a certificate whose path does.
func issuersBelow(ctx context.Context, rd store.Reader, id string, lists []*attest.CRL) (found []*x509.Certificate, err error) {
	names := map[string]bool{}
	for _, l := range lists {
		names[l.IssuerName()] = true
	}
	for der, err := range store.Rows(ctx, rd, store.Scan[[]byte], `SELECT der FROM issuer_certificate ORDER BY fingerprint LIMIT $1`, maxIssuersTried) {
		if err != nil {
			return nil, fmt.Errorf("read the CAs below authority %s: %w", id, err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse a CA below authority %s: %w", id, err)
		}
		if names[cert.Subject.String()] {
			found = append(found, cert)
		}
	}
	return found, nil
}
