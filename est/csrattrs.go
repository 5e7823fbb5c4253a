package est

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const mediaTypeCSRAttrs = "application/csrattrs"

// maxCSRAttrs bounds what a client takes; a full list has some ten entries.
const maxCSRAttrs = 64

// AttrOrOID is one thing that a request should contain (RFC 7030, 4.5.2): an
// attribute with values, or, without values, an identifier alone: an attribute
// whose value the client knows, or a signature algorithm.
type AttrOrOID struct {
	ID     asn1.ObjectIdentifier
	Values [][]byte // each the DER of one value
}

// CSRAttrs is a list of what a request should contain.
type CSRAttrs []AttrOrOID

// kind is one kind of key: its algorithm, and the signature of a request with it.
type kind struct {
	algorithm, curve, signature asn1.ObjectIdentifier
	null                        bool // parameters are NULL where there is no curve
}

var (
	oidECPublicKey   = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidRSAEncryption = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEd25519       = asn1.ObjectIdentifier{1, 3, 101, 112}

	// kinds holds the names that profiles use.
	kinds = map[string]kind{
		"P-256":   {algorithm: oidECPublicKey, curve: asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, signature: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		"P-384":   {algorithm: oidECPublicKey, curve: asn1.ObjectIdentifier{1, 3, 132, 0, 34}, signature: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
		"P-521":   {algorithm: oidECPublicKey, curve: asn1.ObjectIdentifier{1, 3, 132, 0, 35}, signature: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}},
		"Ed25519": {algorithm: oidEd25519},
		"RSA":     {algorithm: oidRSAEncryption, signature: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, null: true},
	}
)

// addAlgorithm adds the content of the AlgorithmIdentifier of the key.
func (k kind) addAlgorithm(b *cryptobyte.Builder) {
	b.AddASN1ObjectIdentifier(k.algorithm)
	switch {
	case k.curve != nil:
		b.AddASN1ObjectIdentifier(k.curve)
	case k.null:
		b.AddASN1NULL()
	}
}

// kindOf names the kind of key that an AlgorithmIdentifier means.
func kindOf(algorithm []byte) (name string, known bool) {
	for name, k := range kinds {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, k.addAlgorithm)
		if bytes.Equal(algorithm, b.BytesOrPanic()) {
			return name, true
		}
	}
	return "", false
}

// Want asks for a key of a kind that may be used, P-256, P-384, P-521, Ed25519
// or RSA, and for a request signed with it, in the form of RFC 9908, 3.2. The
// form cannot say "or", so the first of keys that is known here is asked for;
// clients that must use another may. It returns nil if none is known.
func Want(keys ...string) CSRAttrs {
	for _, name := range keys {
		k, ok := kinds[name]
		switch {
		case !ok:
			continue
		case k.signature == nil: // one identifier for both
			return CSRAttrs{{ID: k.algorithm}}
		case k.curve == nil: // any size
			return CSRAttrs{{ID: k.algorithm}, {ID: k.signature}}
		}
		var curve cryptobyte.Builder
		curve.AddASN1ObjectIdentifier(k.curve)
		return CSRAttrs{{ID: k.algorithm, Values: [][]byte{curve.BytesOrPanic()}}, {ID: k.signature}}
	}
	return nil
}

// csrAttrs answers /csrattrs (RFC 7030, 4.5). Anyone may ask.
func (s *Server) csrAttrs(w http.ResponseWriter, r *http.Request, fleet string) error {
	attrs, err := s.Trust.CSRAttrs(r.Context(), fleet)
	if err != nil {
		return err
	}
	if s.RequireBinding { // RFC 7030, 4.5.2: how a server says so
		attrs = append(slices.Clone(attrs), AttrOrOID{ID: oidChallengePassword})
	}
	if len(attrs) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	der, err := attrs.encode()
	if err != nil {
		return fmt.Errorf("answer csrattrs: %w", err)
	}
	return s.write(w, r, mediaTypeCSRAttrs, der)
}

func (a CSRAttrs) encode() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(list *cryptobyte.Builder) {
		for _, e := range a {
			e.add(list)
		}
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode CSR attributes: %w", err)
	}
	return der, nil
}

func (e AttrOrOID) add(list *cryptobyte.Builder) {
	if len(e.Values) == 0 {
		list.AddASN1ObjectIdentifier(e.ID)
		return
	}
	list.AddASN1(cbasn1.SEQUENCE, func(attr *cryptobyte.Builder) {
		attr.AddASN1ObjectIdentifier(e.ID)
		attr.AddASN1(cbasn1.SET, func(set *cryptobyte.Builder) {
			for _, v := range e.Values {
				set.AddBytes(v)
			}
		})
	})
}

var errCSRAttrs = errors.New("couldn't parse CSR attributes: malformed DER")

func parseCSRAttrs(der []byte) (CSRAttrs, error) {
	in := cryptobyte.String(der)
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errCSRAttrs
	}
	var attrs CSRAttrs
	for !list.Empty() {
		if len(attrs) == maxCSRAttrs {
			return nil, fmt.Errorf("couldn't parse CSR attributes: more than %d", maxCSRAttrs)
		}
		var e AttrOrOID
		if list.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER) {
			if !list.ReadASN1ObjectIdentifier(&e.ID) {
				return nil, errCSRAttrs
			}
		} else if !readAttr(&list, &e) {
			return nil, errCSRAttrs
		}
		attrs = append(attrs, e)
	}
	return attrs, nil
}

// readAttr takes an empty set as well: any value will do (RFC 9908, 3.2).
func readAttr(list *cryptobyte.String, e *AttrOrOID) bool {
	var seq, set cryptobyte.String
	if !list.ReadASN1(&seq, cbasn1.SEQUENCE) ||
		!seq.ReadASN1ObjectIdentifier(&e.ID) ||
		!seq.ReadASN1(&set, cbasn1.SET) || !seq.Empty() {
		return false
	}
	for !set.Empty() {
		var v cryptobyte.String
		var tag cbasn1.Tag
		if !set.ReadAnyASN1Element(&v, &tag) {
			return false
		}
		e.Values = append(e.Values, v)
	}
	return true
}
