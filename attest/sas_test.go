package attest_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

// The vector of Azure's documentation for keys that are derived from a group's.
const (
	azureGroupKey  = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
	azureID        = "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6"
	azureDeviceKey = "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="

	resource = "0ne00/registrations/pump-7"
)

var deviceKeys = attest.SymmetricKeys{Primary: bytes.Repeat([]byte{1}, 32), Secondary: bytes.Repeat([]byte{2}, 32)}

// sas makes a token as a device does, with sr as it is given.
func sas(key []byte, sr string, expiry time.Time) string {
	h := hmac.New(sha256.New, key)
	fmt.Fprintf(h, "%s\n%d", sr, expiry.Unix())
	sig := url.QueryEscape(base64.StdEncoding.EncodeToString(h.Sum(nil)))
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d&skn=registration", sr, sig, expiry.Unix())
}

func TestDeriveKeyGivesAzuresVector(t *testing.T) {
	group, err := attest.ParseSymmetricKey(azureGroupKey)
	if err != nil {
		t.Fatal(err)
	}
	if got := base64.StdEncoding.EncodeToString(attest.DeriveKey(group, azureID)); got != azureDeviceKey {
		t.Errorf("DeriveKey: got %s, want %s", got, azureDeviceKey)
	}
}

func TestSASVerifies(t *testing.T) {
	hour := today.Add(time.Hour)
	key := deviceKeys.Primary
	swap := func(token string) string { // another order of the fields
		scheme, fields, _ := strings.Cut(token, " ")
		f := strings.Split(fields, "&")
		return scheme + " " + strings.Join([]string{f[1], f[2], f[3], f[0]}, "&")
	}
	replace := func(old, new string) string { return strings.Replace(sas(key, resource, hour), old, new, 1) }
	for _, tt := range []struct {
		name, token string
		want        countersign.Code
		slot        attest.KeySlot
	}{
		{"as Node's DPS client", sas(key, resource, hour), "", attest.Primary},
		{"with sr escaped", sas(key, url.QueryEscape(resource), hour), "", attest.Primary},
		{"with sr escaped in lower case", sas(key, strings.ToLower(url.QueryEscape(resource)), hour), "", attest.Primary},
		{"sr in another case", sas(key, strings.ToUpper(resource), hour), "", attest.Primary},
		{"fields in another order", swap(sas(key, resource, hour)), "", attest.Primary},
		{"scheme in another case", replace("SharedAccess", "sharedaccess"), "", attest.Primary},
		{"no skn", replace("&skn=registration", ""), "", attest.Primary},
		{"secondary key", sas(deviceKeys.Secondary, resource, hour), "", attest.Secondary},
		{"plain plus in sig", strings.ReplaceAll(sas(key, resource, hour), "%2B", "+"), "", attest.Primary},
		{"expired within the skew", sas(key, resource, today.Add(-attest.SASSkew)), "", attest.Primary},
		{"expired", sas(key, resource, today.Add(-attest.SASSkew-time.Second)), countersign.CredentialExpire, ""},
		{"for years", sas(key, resource, today.Add(attest.MaxSASLife+time.Second)), countersign.Misconfigured, ""},
		{"other key", sas(bytes.Repeat([]byte{3}, 32), resource, hour), countersign.BadCredential, ""},
		{"empty key", sas(nil, resource, hour), countersign.BadCredential, ""},
		{"other device", sas(key, "0ne00/registrations/pump-8", hour), countersign.SubjectMismatch, ""},
		{"Kelvin sign for a k", sas(key, strings.Replace(resource, "pump", "pum%E2%84%AA", 1), hour), countersign.BadRequest, ""},
		{"escaped twice", sas(key, url.QueryEscape(url.QueryEscape(resource)), hour), countersign.SubjectMismatch, ""},
		{"sr re-escaped after signing", replace("sr="+resource, "sr="+url.QueryEscape(resource)), countersign.BadCredential, ""},
		{"later expiry after signing", replace(fmt.Sprint("se=", hour.Unix()), fmt.Sprint("se=", hour.Unix()+1)), countersign.BadCredential, ""},
		{"zero before the expiry", replace("se=", "se=0"), countersign.BadCredential, ""},
		{"sign before the expiry", replace("se=", "se=%2B"), countersign.BadRequest, ""},
		{"expiry of 12 digits", replace("se=", "se=99"), countersign.BadRequest, ""},
		{"twice sr", replace("&se=", "&sr=x&se="), countersign.BadRequest, ""},
		{"twice skn", replace("&se=", "&skn=&se="), countersign.BadRequest, ""},
		{"unknown field", replace("&se=", "&x=1&se="), countersign.BadRequest, ""},
		{"empty field", replace("&se=", "&&se="), countersign.BadRequest, ""},
		{"no sig", replace("sig=", "skn="), countersign.BadRequest, ""},
		{"empty sig", "SharedAccessSignature sr=a&sig=&se=1", countersign.BadRequest, ""},
		{"short sig", "SharedAccessSignature sr=a&sig=AAAA&se=1", countersign.BadRequest, ""},
		{"line break in sig", replace("sig=", "sig=%0A"), countersign.BadRequest, ""},
		{"broken escape", replace("sr=", "sr=%zz"), countersign.BadRequest, ""},
		{"control character", replace("sr=", "sr=%00"), countersign.BadRequest, ""},
		{"no scheme", replace("SharedAccessSignature ", ""), countersign.BadRequest, ""},
		{"nothing", "", countersign.BadRequest, ""},
		{"long", sas(key, resource, hour) + strings.Repeat("x", attest.MaxSAS), countersign.TooLarge, ""},
	} {
		token, err := attest.ParseSAS(tt.token)
		var slot attest.KeySlot
		if err == nil {
			slot, err = token.Verify(resource, deviceKeys, today)
		}
		if got := countersign.CodeOf(err); got != tt.want || slot != tt.slot {
			t.Errorf("%s: got slot %q and %q (%v), want %q and %q", tt.name, slot, got, err, tt.slot, tt.want)
		}
	}
}

func TestSASOfGroupIsForItsMember(t *testing.T) {
	group := attest.SymmetricKeys{Primary: bytes.Repeat([]byte{7}, 64), Secondary: bytes.Repeat([]byte{8}, 64)}
	hour := today.Add(time.Hour)
	for _, tt := range []struct {
		name string
		key  []byte
		want countersign.Code
		slot attest.KeySlot
	}{
		{"derived key", attest.DeriveKey(group.Primary, "pump-7"), "", attest.Primary},
		{"derived secondary key", attest.DeriveKey(group.Secondary, "pump-7"), "", attest.Secondary},
		{"key of another member", attest.DeriveKey(group.Primary, "pump-8"), countersign.BadCredential, ""},
		{"group key itself", group.Primary, countersign.NotAllowed, ""},
		{"secondary group key itself", group.Secondary, countersign.NotAllowed, ""},
	} {
		token, err := attest.ParseSAS(sas(tt.key, resource, hour))
		if err != nil {
			t.Fatal(err)
		}
		slot, err := token.VerifyGroup(resource, "pump-7", group, today)
		if got := countersign.CodeOf(err); got != tt.want || slot != tt.slot {
			t.Errorf("%s: got slot %q and %q (%v), want %q and %q", tt.name, slot, got, err, tt.slot, tt.want)
		}
	}
	// A group without a secondary key must not accept a key derived from nothing.
	token, err := attest.ParseSAS(sas(attest.DeriveKey(nil, "pump-7"), resource, hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.VerifyGroup(resource, "pump-7", attest.SymmetricKeys{Primary: group.Primary}, today); err == nil {
		t.Error("key derived from no key: got nil, want a refusal")
	}
}

func TestParseSymmetricKeyKeepsItsBounds(t *testing.T) {
	for n, good := range map[int]bool{0: false, 15: false, 16: true, 64: true, 65: false} {
		_, err := attest.ParseSymmetricKey(base64.StdEncoding.EncodeToString(make([]byte, n)))
		if (err == nil) != good {
			t.Errorf("%d octets: got %v, want accepted: %v", n, err, good)
		}
	}
	if _, err := attest.ParseSymmetricKey("not base64 at all, is it"); countersign.CodeOf(err) != countersign.BadRequest {
		t.Errorf("text: got %v, want bad_request", err)
	}
}

func FuzzParseSAS(f *testing.F) {
	f.Add(sas(deviceKeys.Primary, resource, today))
	f.Add("SharedAccessSignature sig=%2B&se=1&skn=&sr=a%2Fb")
	f.Fuzz(func(t *testing.T, token string) {
		s, err := attest.ParseSAS(token)
		if err != nil {
			if code := countersign.CodeOf(err); code != countersign.BadRequest && code != countersign.TooLarge {
				t.Errorf("ParseSAS: got code %q", code)
			}
			return
		}
		if _, err := s.Verify(s.Resource, attest.SymmetricKeys{}, s.Expiry); err == nil {
			t.Errorf("Verify without keys: got nil for %q", token)
		}
	})
}
