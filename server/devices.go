package server

import (
	"cmp"
	"context"
	"net/netip"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/rest"
)

// deviceAnswers serves enroll.Devices: it passes what a device asks on to the
// authority, and returns the same shapes as the operators' API does.
type deviceAnswers struct{ ra *ra.Authority }

func (d *deviceAnswers) ChallengeTPM(ctx context.Context, id api.TPMIdentity, from netip.AddrPort) (api.TPMChallenge, error) {
	c, err := d.ra.ChallengeTPM(ctx, id.Fleet, evidenceOf(id), from)
	if err != nil {
		return api.TPMChallenge{}, err
	}
	return api.TPMChallenge{
		Session: c.Session, Credential: c.Credential, EncryptedSecret: c.EncryptedSecret, File: c.File(), Nonce: c.Nonce, Expires: c.Expires.UTC(),
	}, nil
}

func (d *deviceAnswers) EnrollTPM(ctx context.Context, in api.TPMAnswer, r countersign.EnrollRequest) (*countersign.Grant, error) {
	ev := evidenceOf(in.TPMIdentity)
	ev.Secret, ev.KeyPublic, ev.CertifyInfo, ev.CertifySignature = in.Secret, in.KeyPublic, in.CertifyInfo, in.CertifySignature
	ev.Quote, ev.QuoteSignature = in.Quote, in.QuoteSignature
	var err error
	if ev.PCRs, err = in.Registers(); err != nil {
		return nil, err
	}
	return d.ra.EnrollTPM(ctx, in.Session, ev, r)
}

func evidenceOf(id api.TPMIdentity) ra.TPMEvidence {
	return ra.TPMEvidence{EKPublic: id.EKPublic, EKCertificate: id.EKCertificate, EKChain: id.EKChain, AKPublic: id.AKPublic}
}

func (d *deviceAnswers) Introduce(ctx context.Context, c countersign.Connection, in api.NewIntroduction) (api.SignedIntroduction, error) {
	return d.ra.IntroduceMe(ctx, c, rest.Introduction(in))
}

func (d *deviceAnswers) AccessToken(ctx context.Context, c countersign.Connection, ttl time.Duration) (api.IssuedAccessToken, error) {
	k, text, err := d.ra.DeviceToken(ctx, c, cmp.Or(ttl, access.DefaultTokenTTL))
	return rest.IssuedAccessToken(k, text), err
}

func (d *deviceAnswers) ChangeSecret(ctx context.Context, c countersign.Connection, in api.ChangeSecret) (api.IssuedSecret, error) {
	s, text, err := d.ra.ChangeSecret(ctx, c, in.Binary)
	return rest.IssuedSecret(s, text, in.Binary), err
}
