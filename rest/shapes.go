package rest

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/operator"
)

func shapeDevice(d countersign.Device) api.Device {
	return api.Device{
		ID: d.ID, Fleet: d.Fleet, State: string(d.State), Reason: d.Reason, Owner: d.Owner, Purpose: d.Purpose, Tags: d.Tags,
		CreatedAt: d.CreatedAt.UTC(), UpdatedAt: d.UpdatedAt.UTC(), LastSeen: d.LastSeen.UTC(), LastAddr: d.LastAddr,
	}
}

// shapeCertificate shapes c with its state at now, expired included.
func shapeCertificate(c *countersign.Certificate, now time.Time) api.Certificate {
	out := api.Certificate{
		Issuer: c.Issuer, Serial: string(c.Serial), Device: c.Device, Fleet: c.Fleet, Profile: c.Profile,
		State: c.StateAt(now), Predecessor: string(c.Predecessor.Serial), PredecessorIssuer: c.Predecessor.Issuer, Method: c.Method, KeyHash: c.KeyHash, Fingerprint: c.Fingerprint,
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), IssuedAt: c.IssuedAt.UTC(), UsedAt: c.UsedAt.UTC(),
		AcceptUntil: c.AcceptUntil.UTC(), RevokedAt: c.RevokedAt.UTC(),
	}
	if c.State == countersign.CertRevoked || c.State == countersign.CertHeld {
		out.Reason = c.Reason.String()
	}
	if len(c.DER) > 0 {
		out.PEM = api.PEM(c.DER)
	}
	return out
}

func shapeAuthority(a countersign.Authority) api.Authority {
	sum := sha256.Sum256(a.Certificate.Raw)
	return api.Authority{
		ID: a.ID, Kind: string(a.Kind), Parent: a.Parent, Subject: a.Subject, State: a.State, KeyURI: a.KeyURI,
		Serial: string(countersign.SerialOf(a.Certificate.SerialNumber)), Fingerprint: hex.EncodeToString(sum[:]),
		NotBefore: a.Certificate.NotBefore.UTC(), NotAfter: a.Certificate.NotAfter.UTC(), CreatedAt: a.CreatedAt.UTC(),
		PEM: api.PEM(a.Certificate.Raw),
	}
}

func shapeSession(s countersign.Session) api.Session {
	return api.Session{
		ID: s.ID, Device: s.Device, Fleet: s.Fleet, Issuer: s.Cert.Issuer, Serial: string(s.Cert.Serial), Gateway: s.Gateway,
		Protocol: s.Protocol, ClientID: s.ClientID, Remote: s.Remote.String(), Since: s.Since.UTC(), NotAfter: s.NotAfter.UTC(),
	}
}

func shapeEvent(e countersign.Event) api.Event {
	return api.Event{
		Seq: e.Seq, At: e.At.UTC(), Type: string(e.Type), Severity: string(e.Type.Kind().Level), Actor: string(e.Actor),
		Device: e.Device, Fleet: e.Fleet, Issuer: e.Cert.Issuer, Serial: string(e.Cert.Serial),
		Remote: e.Remote, Via: e.Via, Code: string(e.Code), Reason: e.Reason, Data: e.Data, Hash: hex.EncodeToString(e.Hash),
	}
}

func shapeFleet(f countersign.Fleet) api.Fleet {
	methods := make([]string, 0, len(f.Methods))
	for _, m := range f.Methods {
		methods = append(methods, string(m))
	}
	return api.Fleet{
		Name: f.Name, Issuer: f.Issuer, Profile: f.Profile, Methods: methods, OverlapSeconds: int64(f.Overlap / time.Second),
		TrustDomain: f.TrustDomain, Rules: shapeRules(f.Rules), CreatedAt: f.CreatedAt.UTC(), UpdatedAt: f.UpdatedAt.UTC(),
	}
}

func shapeProfile(p ca.Profile) api.Profile {
	return api.Profile{
		Name: p.Name, Description: p.Description, ValiditySeconds: seconds(p.Validity), NoExpiry: p.NoExpiry,
		BackdateSeconds: seconds(p.Backdate), ExtKeyUsage: p.ExtKeyUsage, KeyUsage: p.KeyUsage, Keys: p.Keys,
		ServerKeys: p.ServerKeys, NoStatus: p.NoStatus, OmitURI: p.OmitURI,
	}
}

func profileOf(p api.Profile) ca.Profile {
	return ca.Profile{
		Name: p.Name, Description: p.Description, Validity: durationOf(p.ValiditySeconds), NoExpiry: p.NoExpiry,
		Backdate: durationOf(p.BackdateSeconds), ExtKeyUsage: p.ExtKeyUsage, KeyUsage: p.KeyUsage, Keys: p.Keys,
		ServerKeys: p.ServerKeys, NoStatus: p.NoStatus, OmitURI: p.OmitURI,
	}
}

func seconds(d ca.Duration) int64    { return int64(time.Duration(d) / time.Second) }
func durationOf(s int64) ca.Duration { return ca.Duration(time.Duration(s) * time.Second) }

func shapeOperatorToken(t operator.Token) api.OperatorToken {
	return api.OperatorToken{
		ID: t.ID, Name: t.Name, Role: string(t.Role), CreatedAt: t.CreatedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(),
		UsedAt: t.UsedAt.UTC(), Revoked: t.Revoked,
	}
}
