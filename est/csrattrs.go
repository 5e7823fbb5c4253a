package est

import (
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

// WantP256 asks for a P-256 key, in the form of RFC 8951's clarified examples,
// and for a request signed with ECDSA and SHA-256.
func WantP256() CSRAttrs {
	return CSRAttrs{
		{
			ID:     asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1},                          // id-ecPublicKey
			Values: [][]byte{{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}}, // secp256r1
		},
		{ID: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, // ecdsa-with-SHA256
	}
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

func readAttr(list *cryptobyte.String, e *AttrOrOID) bool {
	var seq, set cryptobyte.String
	if !list.ReadASN1(&seq, cbasn1.SEQUENCE) ||
		!seq.ReadASN1ObjectIdentifier(&e.ID) ||
		!seq.ReadASN1(&set, cbasn1.SET) || !seq.Empty() || set.Empty() {
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
