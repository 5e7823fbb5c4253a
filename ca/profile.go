package ca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// Profile is what a certificate may contain (RFC 5280). The fleet decides who may have
// one.
type Profile struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Validity    Duration `json:"validity,omitempty"`  // lifetime; unused where NoExpiry
	NoExpiry    bool     `json:"no_expiry,omitempty"` // 99991231235959Z, for an IDevID (802.1AR, 8.7; RFC 5280, 4.1.2.5)
	Backdate    Duration `json:"backdate,omitempty"`  // how far NotBefore is in the past, for devices whose clock is slow
	ExtKeyUsage []string `json:"ext_key_usage,omitempty"`
	KeyUsage    []string `json:"key_usage,omitempty"`
	Keys        []string `json:"keys,omitempty"`        // accepted key types; empty: all that CheckKey accepts
	ServerKeys  bool     `json:"server_keys,omitempty"` // the server may make keys (RFC 7030, 4.4); they are never stored
	NoStatus    bool     `json:"no_status,omitempty"`   // leave out CRL distribution points and OCSP
	OmitURI     bool     `json:"omit_uri,omitempty"`    // leave out the URI that names the device
}

// Duration is a time.Duration that JSON writes as text such as "720h", and reads as
// "30d" too.
type Duration = countersign.Span

// The built-in profiles.
const (
	ProfileDevice = "device" // LDevID: 30 days, clientAuth
	ProfileIDevID = "idevid" // IDevID: no well-defined expiry
)

const (
	// DefaultValidity of a device certificate: short enough that a lost
	// revocation heals by itself, long enough for a month in a warehouse.
	DefaultValidity = 30 * 24 * time.Hour
	// maxValidity of a profile with an expiry.
	maxValidity = 50 * 365 * 24 * time.Hour
	// minValidity leaves a device the time to install and renew.
	minValidity = 5 * time.Minute
	maxBackdate = 7 * 24 * time.Hour
)

// noExpiry is the date that means "no well-defined expiration" (RFC 5280, 4.1.2.5).
var noExpiry = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

var keyUsages = map[string]x509.KeyUsage{
	"digitalSignature": x509.KeyUsageDigitalSignature,
	"keyEncipherment":  x509.KeyUsageKeyEncipherment,
	"keyAgreement":     x509.KeyUsageKeyAgreement,
}

var extKeyUsages = map[string]x509.ExtKeyUsage{
	"clientAuth": x509.ExtKeyUsageClientAuth,
	"serverAuth": x509.ExtKeyUsageServerAuth,
}

// builtin returns the profiles that every installation starts with.
func builtin() []Profile {
	return []Profile{
		{
			Name: ProfileDevice, Description: "operational device certificate (LDevID)",
			Validity: Duration(DefaultValidity), Backdate: Duration(defaultBackdate),
			KeyUsage: []string{"digitalSignature"}, ExtKeyUsage: []string{"clientAuth"},
		},
		{
			Name: ProfileIDevID, Description: "factory identity (802.1AR IDevID), never expires",
			NoExpiry: true, KeyUsage: []string{"digitalSignature"}, ExtKeyUsage: []string{"clientAuth"},
		},
	}
}

// check reports whether the profile makes sense before anything is signed with it.
func (p *Profile) check() error {
	if err := countersign.CheckName(p.Name); err != nil {
		return err
	}
	v := time.Duration(p.Validity)
	switch {
	case p.NoExpiry && v != 0:
		return countersign.Errorf(countersign.BadRequest, "profile %s has both validity and no_expiry", p.Name)
	case !p.NoExpiry && (v < minValidity || v > maxValidity):
		return countersign.Errorf(countersign.BadRequest, "profile %s: validity %v is not between %v and %v", p.Name, v, minValidity, maxValidity)
	case p.Backdate < 0 || time.Duration(p.Backdate) > maxBackdate:
		return countersign.Errorf(countersign.BadRequest, "profile %s: backdate %v is not between 0 and %v", p.Name, time.Duration(p.Backdate), maxBackdate)
	case len(p.KeyUsage) == 0:
		return countersign.Errorf(countersign.BadRequest, "profile %s names no key_usage", p.Name)
	case len(p.ExtKeyUsage) == 0:
		return countersign.Errorf(countersign.BadRequest, "profile %s names no ext_key_usage", p.Name)
	}
	for _, f := range []struct {
		field       string
		used, known []string
	}{
		{"key_usage", p.KeyUsage, slices.Sorted(maps.Keys(keyUsages))},
		{"ext_key_usage", p.ExtKeyUsage, slices.Sorted(maps.Keys(extKeyUsages))},
		{"key type", p.Keys, keyTypes},
	} {
		if i := slices.IndexFunc(f.used, func(u string) bool { return !slices.Contains(f.known, u) }); i >= 0 {
			return countersign.Errorf(countersign.BadRequest, "profile %s: %s %q is not one a device may have", p.Name, f.field, f.used[i]).
				WithNext(fmt.Sprintf("use any of %v", f.known))
		}
	}
	return nil
}

func (p *Profile) keyUsage() (ku x509.KeyUsage) {
	for _, u := range p.KeyUsage {
		ku |= keyUsages[u]
	}
	return ku
}

func (p *Profile) extKeyUsage() []x509.ExtKeyUsage {
	var out []x509.ExtKeyUsage
	for _, u := range p.ExtKeyUsage {
		out = append(out, extKeyUsages[u])
	}
	return out
}

// ReadProfile reads one profile.
func ReadProfile(ctx context.Context, r store.Reader, name string) (Profile, error) {
	p, err := scanProfile(r.QueryRow(ctx, `SELECT spec FROM profile WHERE name = $1`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return p, countersign.Errorf(countersign.NotFound, "there is no profile %q", name).WithNext("look for it in the list of profiles")
	}
	if err != nil {
		return p, fmt.Errorf("read profile %s: %w", name, err)
	}
	return p, nil
}

// Profiles lists all profiles by name. They are few: an operator writes each by hand.
func Profiles(ctx context.Context, r store.Reader) ([]Profile, error) {
	list, err := store.List(ctx, r, scanProfile, `SELECT spec FROM profile ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list profiles: %w", err)
	}
	return list, nil
}

func scanProfile(row store.Row) (p Profile, err error) {
	spec, err := store.Scan[[]byte](row)
	if err == nil {
		err = json.Unmarshal(spec, &p)
	}
	return p, err
}
