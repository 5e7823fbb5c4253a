package attest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// MaxSAS is the longest token: a resource with a device id of 128
	// characters, each of them escaped, is under 600.
	MaxSAS = 1024
	// SASSkew is by how much a device's clock may lag behind ours: a token that
	// expired less than this ago is still good.
	SASSkew = 5 * time.Minute
	// MaxSASLife bounds how far ahead a token may expire, so that a leaked one
	// ends with the year. Longer ones are made by hand and forgotten.
	MaxSASLife = 366 * 24 * time.Hour

	minSymmetricKey = 16 // octets; less can be searched
	maxSymmetricKey = 64 // octets; HMAC-SHA256 hashes what is longer than its block
	maxExpiryDigits = 11 // seconds since 1970 until the year 5138
	sasScheme       = "SharedAccessSignature"
)

// KeySlot is which of two registered credentials was presented. There are two so that
// one can be replaced while the other is in use.
type KeySlot string

// The slots.
const (
	Primary   KeySlot = "primary"
	Secondary KeySlot = "secondary"
)

// SAS is a shared access signature, as Azure's device SDKs make them: an HMAC
// over a resource and an expiry.
type SAS struct {
	Resource string // sr, percent-decoded
	KeyName  string // skn, percent-decoded; empty if the token has none
	Expiry   time.Time
	signed   string // sr and se as received: the bytes that the HMAC covers
	mac      []byte
}

// ParseSAS reads "SharedAccessSignature sr=…&sig=…&se=…[&skn=…]". The fields
// may be in any order, since the SDKs differ, each once; others are refused, because
// the HMAC does not protect them. Errors have code BadRequest or TooLarge: a token
// that cannot be parsed does not count as a guess.
func ParseSAS(token string) (*SAS, error) {
	if len(token) > MaxSAS {
		return nil, countersign.Errorf(countersign.TooLarge, "SAS token is longer than %d octets", MaxSAS)
	}
	scheme, rest, _ := strings.Cut(token, " ")
	if !strings.EqualFold(scheme, sasScheme) {
		return nil, badSAS(countersign.BadRequest, "does not begin with %s", sasScheme)
	}
	fields := map[string]string{}
	for field := range strings.SplitSeq(rest, "&") {
		name, value, _ := strings.Cut(field, "=")
		switch name {
		case "sr", "sig", "se", "skn":
		default:
			return nil, badSAS(countersign.BadRequest, "has an unknown field")
		}
		if _, twice := fields[name]; twice {
			return nil, badSAS(countersign.BadRequest, "has field %s twice", name)
		}
		if value == "" && name != "skn" {
			return nil, badSAS(countersign.BadRequest, "has an empty field %s", name)
		}
		fields[name] = value
	}
	return decodeSAS(fields)
}

func decodeSAS(fields map[string]string) (*SAS, error) {
	for _, name := range []string{"sr", "sig", "se"} {
		if fields[name] == "" {
			return nil, badSAS(countersign.BadRequest, "has no field %s", name)
		}
	}
	// Some SDKs sign sr escaped and others plain, so the HMAC is over the octets as received.
	s := &SAS{signed: fields["sr"] + "\n" + fields["se"]}
	var sig string
	var err error
	for _, f := range []struct {
		name string
		to   *string
	}{{"sr", &s.Resource}, {"skn", &s.KeyName}, {"sig", &sig}} {
		if *f.to, err = unescape(fields[f.name]); err != nil {
			return nil, badSAS(countersign.BadRequest, "has a malformed %s", f.name)
		}
	}
	s.mac, err = base64.StdEncoding.Strict().DecodeString(sig)
	if err != nil || len(s.mac) != sha256.Size || strings.ContainsAny(sig, "\r\n") {
		return nil, badSAS(countersign.BadRequest, "has a sig that is not base64 of %d octets", sha256.Size)
	}
	seconds, err := strconv.ParseUint(fields["se"], 10, 63)
	if err != nil || len(fields["se"]) > maxExpiryDigits {
		return nil, badSAS(countersign.BadRequest, "has an se that is not a time in seconds")
	}
	s.Expiry = time.Unix(int64(seconds), 0)
	return s, nil
}

// unescape decodes percent-encoding once. A plus sign is kept, unlike in a web
// form: base64 uses it, and Node's DPS client sends it plain. Control characters
// and text that is not UTF-8 are refused.
func unescape(s string) (string, error) {
	plain, err := url.PathUnescape(s)
	if err != nil {
		return "", err
	}
	for i := range len(plain) {
		if plain[i] <= ' ' || plain[i] >= 0x7f {
			return "", strconv.ErrSyntax
		}
	}
	return plain, nil
}

func badSAS(code countersign.Code, format string, args ...any) error {
	return countersign.Errorf(code, "SAS token "+format, args...).
		WithNext("make a new token from the device's key")
}

// SymmetricKeys are the keys of one device or one group, decoded from base64.
// Secondary may be empty.
type SymmetricKeys struct {
	Primary   []byte
	Secondary []byte
}

// ParseSymmetricKey decodes a key as Azure shows it: base64 of 16 to 64 octets.
func ParseSymmetricKey(s string) ([]byte, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(key) < minSymmetricKey || len(key) > maxSymmetricKey {
		return nil, countersign.Errorf(countersign.BadRequest, "symmetric key is not base64 of %d to %d octets",
			minSymmetricKey, maxSymmetricKey).WithNext("make one with: openssl rand -base64 64")
	}
	return key, nil
}

// DeriveKey returns the key of one device of a group: HMAC-SHA256 (RFC 2104) of its
// registration id under the group key. The device has base64 of it and
// never the group key. The id is used as it is, case included.
func DeriveKey(groupKey []byte, registrationID string) []byte {
	h := hmac.New(sha256.New, groupKey)
	h.Write([]byte(registrationID))
	return h.Sum(nil)
}

// Derive returns the keys of one device of a group whose keys are k.
func (k SymmetricKeys) Derive(registrationID string) SymmetricKeys {
	derive := func(key []byte) []byte {
		if len(key) == 0 {
			return nil
		}
		return DeriveKey(key, registrationID)
	}
	return SymmetricKeys{derive(k.Primary), derive(k.Secondary)}
}

// Verify reports whether the token was made with one of the keys for the resource,
// such as "0ne00/registrations/pump-7", and has not expired, and returns which key it was.
// Resources compare without regard to ASCII case, as Azure's do. Errors have code
// BadCredential where none of the keys made it; CredentialExpire, Misconfigured for
// an expiry too far ahead, and SubjectMismatch for another resource where one did.
func (s *SAS) Verify(resource string, keys SymmetricKeys, now time.Time) (KeySlot, error) {
	slot := s.signedBy(keys)
	switch {
	case slot == "":
		return "", badSAS(countersign.BadCredential, "was not made with a key of this device")
	case !equalFoldASCII(s.Resource, resource):
		return "", countersign.Errorf(countersign.SubjectMismatch, "SAS token is for another resource").
			WithNext("sign for the resource that the request names")
	case now.After(s.Expiry.Add(SASSkew)):
		return "", countersign.Errorf(countersign.CredentialExpire, "SAS token expired at %s", s.Expiry.UTC().Format(time.RFC3339)).
			WithNext("make a new token; check the device's clock")
	case s.Expiry.After(now.Add(MaxSASLife)):
		return "", badSAS(countersign.Misconfigured, "expires more than %d days ahead", int(MaxSASLife.Hours())/24)
	}
	return slot, nil
}

// VerifyGroup is Verify for a member of a group with these group keys. A token
// made with the group key itself is refused, with code NotAllowed: that key must
// stay in the factory, because a device that has it can impersonate any other.
func (s *SAS) VerifyGroup(resource, registrationID string, group SymmetricKeys, now time.Time) (KeySlot, error) {
	if s.signedBy(group) != "" {
		return "", countersign.Errorf(countersign.NotAllowed, "SAS token was made with the group key itself").
			WithNext("put the derived key into the device, and replace the group key: it has left the factory")
	}
	return s.Verify(resource, group.Derive(registrationID), now)
}

// SignedBy reports whether the token was made with one of the keys, for any resource
// and expiry.
func (s *SAS) SignedBy(keys SymmetricKeys) bool { return s.signedBy(keys) != "" }

// signedBy always tries both keys, so that the time does not reveal which one it was.
func (s *SAS) signedBy(keys SymmetricKeys) KeySlot {
	first, second := s.matches(keys.Primary), s.matches(keys.Secondary)
	switch {
	case first:
		return Primary
	case second:
		return Secondary
	}
	return ""
}

// matches compares in constant time. An empty key, or one too short to be a secret, matches nothing.
func (s *SAS) matches(key []byte) bool {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s.signed))
	return hmac.Equal(h.Sum(nil), s.mac) && len(key) >= minSymmetricKey
}

// equalFoldASCII is strings.EqualFold without the letters that Unicode folds
// into ASCII, such as the Kelvin sign.
func equalFoldASCII(a, b string) bool {
	return len(a) == len(b) && strings.EqualFold(a, b)
}
