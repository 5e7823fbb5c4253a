package cms

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// keySize of the content-encryption key: AES-256.
const keySize = 32

// maxRecipients is the most that one message may be for. Countersign writes one;
// other servers may add an escrow.
const maxRecipients = 8

var (
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3} // RFC 5652, 6.1

	// RFC 3565, 4.1: AES in CBC mode, by the length of its key.
	oidAESCBC = map[int]asn1.ObjectIdentifier{
		16: {2, 16, 840, 1, 101, 3, 4, 1, 2}, 24: {2, 16, 840, 1, 101, 3, 4, 1, 22}, 32: {2, 16, 840, 1, 101, 3, 4, 1, 42},
	}
	// RFC 3565, 2.3.2: AES Key Wrap, by the length of its key.
	oidAESWrap = map[int]asn1.ObjectIdentifier{
		16: {2, 16, 840, 1, 101, 3, 4, 1, 5}, 24: {2, 16, 840, 1, 101, 3, 4, 1, 25}, 32: {2, 16, 840, 1, 101, 3, 4, 1, 45},
	}

	tagImplicit0 = cbasn1.Tag(0).ContextSpecific()
	tagExplicit2 = cbasn1.Tag(2).ContextSpecific().Constructed()
)

// Recipient is the recipient of an encrypted message: the holder of the key of a
// certificate, or of a shared secret.
type Recipient struct {
	// Certificate holds an RSA key (RSAES-OAEP with SHA-256), or an EC key on
	// P-256, P-384 or P-521 (ephemeral-static ECDH).
	Certificate *x509.Certificate
	// Key is the private half, to decrypt: a [crypto.Decrypter] for RSA, an
	// *ecdsa.PrivateKey for EC.
	Key crypto.PrivateKey

	// Secret is an AES key of 16, 24 or 32 octets, used if there is no certificate,
	// and SecretID its name.
	Secret, SecretID []byte
}

// Encrypt returns the DER of an EnvelopedData (RFC 5652, 6) for one recipient, with
// content encrypted by AES-256 in CBC mode. That hides the content and does not
// protect it from change: sign it first. content is that of contentType
// in DER, for id-data the octets themselves.
func Encrypt(contentType asn1.ObjectIdentifier, content []byte, to Recipient) ([]byte, error) {
	if len(content) > MaxSize/2 {
		return nil, fmt.Errorf("couldn't encrypt: %d octets are over %d", len(content), MaxSize/2)
	}
	key, iv := make([]byte, keySize), make([]byte, aes.BlockSize)
	defer clear(key)
	// crypto/rand.Read never fails.
	_, _ = rand.Read(key)
	_, _ = rand.Read(iv)
	version, info, err := to.wrap(key)
	if err != nil {
		return nil, fmt.Errorf("couldn't encrypt: %w", err)
	}
	encrypted, err := encryptCBC(key, iv, content)
	if err != nil {
		return nil, fmt.Errorf("couldn't encrypt: %w", err)
	}
	var b cryptobyte.Builder
	addContentInfo(&b, oidEnvelopedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(version)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(info) })
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // EncryptedContentInfo
			b.AddASN1ObjectIdentifier(contentType)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidAESCBC[keySize])
				b.AddASN1OctetString(iv)
			})
			b.AddASN1(tagImplicit0, func(b *cryptobyte.Builder) { b.AddBytes(encrypted) })
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("couldn't encrypt: %w", err)
	}
	return der, nil
}

// wrap returns the RecipientInfo that carries key, and the version of an
// EnvelopedData around it (RFC 5652, 6.1).
func (r Recipient) wrap(key []byte) (version int64, info []byte, err error) {
	if r.Certificate == nil {
		info, err = r.wrapSecret(key)
		return 2, info, err
	}
	switch r.Certificate.PublicKeyAlgorithm {
	case x509.RSA:
		info, err = r.wrapRSA(key)
		return 0, info, err
	case x509.ECDSA:
		info, err = r.wrapEC(key)
		return 2, info, err
	}
	return 0, nil, fmt.Errorf("keys of kind %v cannot encrypt", r.Certificate.PublicKeyAlgorithm)
}

func encryptCBC(key, iv, content []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	pad := aes.BlockSize - len(content)%aes.BlockSize // RFC 5652, 6.3
	out := append(bytes.Clone(content), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, out)
	return out, nil
}

func decryptCBC(key, iv, encrypted []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil || len(iv) != aes.BlockSize || len(encrypted) == 0 || len(encrypted)%aes.BlockSize != 0 {
		return nil, errUnwrap
	}
	out := make([]byte, len(encrypted))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(out, encrypted)
	pad := int(out[len(out)-1])
	if pad == 0 || pad > aes.BlockSize {
		return nil, errUnwrap
	}
	content, padding := out[:len(out)-pad], out[len(out)-pad:]
	if subtle.ConstantTimeCompare(padding, bytes.Repeat([]byte{byte(pad)}, pad)) != 1 {
		return nil, errUnwrap
	}
	return content, nil
}

var (
	errEnvelope    = errors.New("not an EnvelopedData in DER")
	errNoRecipient = errors.New("the message is for another recipient")
	errAlgorithm   = errors.New("the message uses an algorithm that is not known here")
)

// envelope is a parsed EnvelopedData.
type envelope struct {
	recipients  cryptobyte.String
	contentType asn1.ObjectIdentifier
	cipher      asn1.ObjectIdentifier
	iv, content cryptobyte.String
}

// Decrypt opens an EnvelopedData as one of its recipients and returns the content
// with its type. Beside what [Encrypt] writes it accepts AES with shorter keys and
// other hashes of the SHA-2 family. The content is not authenticated: anyone who has
// the recipient's certificate can make such a message.
func Decrypt(der []byte, as Recipient) (contentType asn1.ObjectIdentifier, content []byte, err error) {
	e, err := parseEnvelope(der)
	if err == nil {
		content, err = e.open(as)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("couldn't decrypt: %w", err)
	}
	return e.contentType, content, nil
}

// open returns the content for the first of the recipients that is r.
func (e *envelope) open(r Recipient) ([]byte, error) {
	size, known := named(e.cipher, oidAESCBC)
	if !known {
		return nil, errAlgorithm
	}
	for n := 0; !e.recipients.Empty(); n++ {
		var info cryptobyte.String
		var tag cbasn1.Tag
		if n == maxRecipients || !e.recipients.ReadAnyASN1(&info, &tag) {
			return nil, errEnvelope
		}
		key, err := r.unwrap(tag, info)
		if errors.Is(err, errNoRecipient) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer clear(key)
		if len(key) != size {
			return nil, errUnwrap
		}
		return decryptCBC(key, e.iv, e.content)
	}
	return nil, errNoRecipient
}

func parseEnvelope(der []byte) (*envelope, error) {
	if len(der) > MaxSize {
		return nil, fmt.Errorf("%d octets are over %d", len(der), MaxSize)
	}
	var e envelope
	var encrypted, algorithm cryptobyte.String
	var version int
	data, ok := readContentInfo(der, oidEnvelopedData)
	if !ok || !data.ReadASN1Integer(&version) ||
		!data.SkipOptionalASN1(tagExplicit0) || // originatorInfo
		!data.ReadASN1(&e.recipients, cbasn1.SET) ||
		!data.ReadASN1(&encrypted, cbasn1.SEQUENCE) ||
		!data.SkipOptionalASN1(tagExplicit1) || !data.Empty() || // unprotectedAttrs
		!encrypted.ReadASN1ObjectIdentifier(&e.contentType) ||
		!encrypted.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!encrypted.ReadASN1(&e.content, tagImplicit0) || !encrypted.Empty() ||
		!algorithm.ReadASN1ObjectIdentifier(&e.cipher) ||
		!algorithm.ReadASN1(&e.iv, cbasn1.OCTET_STRING) || !algorithm.Empty() {
		return nil, errEnvelope
	}
	return &e, nil
}

// named returns the size or the hash that an identifier of the table is for.
func named[K comparable](id asn1.ObjectIdentifier, table map[K]asn1.ObjectIdentifier) (k K, known bool) {
	for k, oid := range table {
		if oid.Equal(id) {
			return k, true
		}
	}
	return k, false
}

// unwrap returns the content-encryption key from one RecipientInfo, errNoRecipient
// if it is for another recipient.
func (r Recipient) unwrap(tag cbasn1.Tag, info cryptobyte.String) ([]byte, error) {
	switch {
	case tag == cbasn1.SEQUENCE && r.Certificate != nil && r.Certificate.PublicKeyAlgorithm == x509.RSA:
		return r.unwrapRSA(info)
	case tag == tagExplicit1 && r.Certificate != nil && r.Certificate.PublicKeyAlgorithm == x509.ECDSA:
		return r.unwrapEC(info)
	case tag == tagExplicit2 && r.Certificate == nil:
		return r.unwrapSecret(info)
	}
	return nil, errNoRecipient
}
