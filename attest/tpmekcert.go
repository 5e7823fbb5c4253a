package attest

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
)

// maxEKCertificate bounds one certificate of an EK's chain. The largest known,
// with platform attributes, are under 3 KiB.
const maxEKCertificate = 8 << 10

var (
	// oidEKCertificate is tcg-kp-EKCertificate (TCG EK Credential Profile, 3.2.16).
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}

	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}

	oidRSAOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7} // id-RSAES-OAEP of PKCS #1
)

// TPMModel is the description of a chip in its EK certificate, in TCG's spelling: the
// manufacturer as "id:" and its registered number in hex, such as "id:49465800".
type TPMModel struct {
	Manufacturer string
	Model        string
	Version      string
}

// readCertificate checks that the EK certificate is for this EK and, unless the
// operator registered the EK, from a manufacturer that the operator trusts.
func (id *TPMIdentity) readCertificate(ev TPMEvidence, ek *tpmKey, o TPMOptions) error {
	chain, err := parseEKChain(ev)
	if err != nil {
		return err
	}
	leaf := chain[0]
	if !ek.is(leaf.PublicKey) {
		return badTPM("the endorsement key certificate is for another endorsement key").
			WithNext("send the certificate of the endorsement key that is sent (tpm2_getekcertificate)")
	}
	if id.Model, err = tpmModel(leaf); err != nil {
		return err
	}
	id.EKThumbprint = ThumbprintOf(leaf)
	if id.Registered {
		return nil
	}
	return checkEKPath(chain, o)
}

func parseEKChain(ev TPMEvidence) ([]*x509.Certificate, error) {
	if len(ev.EKChain) >= maxPresented {
		return nil, countersign.Errorf(countersign.TooLarge, "the endorsement key certificate comes with more than %d others", maxPresented-1).
			WithNext("send the CAs between it and the manufacturer's root, nothing else")
	}
	var chain []*x509.Certificate
	for _, stored := range slices.Concat([][]byte{ev.EKCertificate}, ev.EKChain) {
		if err := checkTPMSize("endorsement key certificate", stored, maxEKCertificate); err != nil {
			return nil, err
		}
		der, err := unwrapEKCertificate(stored)
		if err != nil {
			return nil, err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, malformedTPM("endorsement key certificate", err)
		}
		chain = append(chain, c)
	}
	if chain[0].PublicKey == nil {
		readOAEPKey(chain[0])
	}
	return chain, nil
}

// The header of a certificate in the NV storage of a TPM (TCG PC Client Specific
// Implementation Specification 1.21, 7.3.2): the tag, the type full certificate, a
// length, and, with most makers, the tag of a full certificate.
var (
	tagStoredCert = []byte{0x10, 0x01, 0x00}
	tagFullCert   = []byte{0x10, 0x02}
)

// unwrapEKCertificate returns the DER of a certificate as a TPM stores it: with or
// without TCG's header, and with the manufacturer's padding of the NV index after it,
// 0xff or 0x00.
func unwrapEKCertificate(stored []byte) ([]byte, error) {
	rest := stored
	if bytes.HasPrefix(rest, tagStoredCert) && len(rest) > len(tagStoredCert)+2 {
		size := int(binary.BigEndian.Uint16(rest[len(tagStoredCert):]))
		if rest = rest[len(tagStoredCert)+2:]; size > len(rest) {
			return nil, countersign.Errorf(countersign.BadRequest, "the endorsement key certificate is truncated: its header has the length %d, and %d octets follow", size, len(rest)).
				WithNext("read the whole NV index of the certificate (tpm2_nvread)")
		}
		rest = bytes.TrimPrefix(rest, tagFullCert)
	}
	in := cryptobyte.String(rest)
	var der cryptobyte.String
	if !in.ReadASN1Element(&der, cbasn1.SEQUENCE) {
		return nil, countersign.Errorf(countersign.BadRequest, "the endorsement key certificate is malformed or truncated: it is neither DER nor DER after TCG's header").
			WithNext("send what the NV index of the certificate holds (tpm2_nvread), or the certificate in DER")
	}
	if n := len(bytes.Trim(in, "\x00\xff")); n > 0 {
		return nil, countersign.Errorf(countersign.BadRequest, "the endorsement key certificate is followed by %d octets that are neither 0x00 nor 0xff", n).
			WithNext("send the certificate alone, and other certificates separately")
	}
	return der, nil
}

// readOAEPKey fills in the key of a certificate that names RSA by the OAEP
// identifier, as some manufacturers' EK certificates do and crypto/x509 does not know.
// Without that identifier, or with another key, it does not change the certificate.
func readOAEPKey(c *x509.Certificate) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &info); err != nil || len(rest) > 0 || !info.Algorithm.Algorithm.Equal(oidRSAOAEP) {
		return
	}
	key, err := x509.ParsePKCS1PublicKey(info.Key.RightAlign())
	if err == nil && key.N.BitLen() <= maxRSABits {
		c.PublicKey, c.PublicKeyAlgorithm = key, x509.RSA
	}
}

// checkEKPath validates the path to a manufacturer's CA, with what is special about an
// EK certificate: a key usage for encryption, not signatures, and an
// extended key usage that Go does not know, which each CA of the path must allow.
func checkEKPath(chain []*x509.Certificate, o TPMOptions) error {
	leaf := *chain[0]
	usage := x509.KeyUsageKeyAgreement
	if _, isRSA := leaf.PublicKey.(*rsa.PublicKey); isRSA {
		usage = x509.KeyUsageKeyEncipherment
	}
	if leaf.KeyUsage&usage == 0 || !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return badTPM("the certificate that came with the endorsement key is not an endorsement key certificate").
			WithNext("send the one that the manufacturer put into the TPM (tpm2_getekcertificate)")
	}
	// ValidatePath requires an end entity that signs; the usage of this one was checked above.
	leaf.KeyUsage = 0
	leaf.Extensions = slices.DeleteFunc(slices.Clone(leaf.Extensions), func(e pkix.Extension) bool { return e.Id.Equal(oidKeyUsage) })
	path, err := ValidatePath(append([]*x509.Certificate{&leaf}, chain[1:]...), o.Anchors, PathOptions{
		Now: o.Now,
		EKU: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		// Chips outlive profiles: many manufacturers' CAs are older than the rule on key identifiers.
		AllowLegacy: true,
	})
	if err != nil {
		return err
	}
	for _, c := range path.Certificates[1:] {
		allowed := !has(c, oidExtKeyUsage) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) ||
			slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal)
		if !allowed {
			return badTPM("%s may not issue endorsement key certificates", nameOf(c)).
				WithNext("register the CA with which the manufacturer signs endorsement key certificates")
		}
	}
	return nil
}

// tpmModel reads manufacturer, model and version from the directory name in the
// subjectAltName (TCG EK Credential Profile, 3.1.2). The extension is critical
// where the subject is empty, and crypto/x509 does not read names of that form:
// that it is well-formed is checked here. Each attribute may be missing, not double.
func tpmModel(c *x509.Certificate) (TPMModel, error) {
	malformed := countersign.Errorf(countersign.Misconfigured, "the endorsement key certificate has a malformed subjectAltName").
		WithNext("ask the manufacturer for a certificate that conforms to TCG's profile")
	names, ok := altNames(c)
	if !ok {
		return TPMModel{}, malformed
	}
	var m TPMModel
	fields := []struct {
		oid asn1.ObjectIdentifier
		to  *string
	}{{oidTPMManufacturer, &m.Manufacturer}, {oidTPMModel, &m.Model}, {oidTPMVersion, &m.Version}}
	for _, n := range names {
		if n.tag != tagDirectory {
			continue
		}
		var rdns pkix.RDNSequence
		if rest, err := asn1.Unmarshal(n.value, &rdns); err != nil || len(rest) > 0 {
			return TPMModel{}, malformed.WithCause(err)
		}
		for _, rdn := range rdns {
			for _, a := range rdn {
				for _, f := range fields {
					if !a.Type.Equal(f.oid) {
						continue
					}
					text, isText := a.Value.(string)
					if !isText || *f.to != "" {
						return TPMModel{}, malformed
					}
					*f.to = text
				}
			}
		}
	}
	return m, nil
}
