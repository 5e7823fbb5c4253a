package ra

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/registry"
)

// tpmSessionLife is how long a TPM has to answer its challenge; a slow discrete
// chip needs seconds.
const tpmSessionLife = 5 * time.Minute

// tpmSession is the server's half of an exchange. It travels sealed with the
// device, so that any node can finish what another began and nothing is kept. It
// can be answered more than once in its life, but only by the chip it was made
// for, which has its certificate then; the same key gets the same one.
type tpmSession struct {
	Fleet   string
	Expect  attest.TPMExpectation
	Expires time.Time
}

const tpmContext = "tpm session"

// ChallengeTPM takes a TPM's endorsement and attestation keys and makes a
// challenge that only that chip can answer.
func (d *Authority) ChallengeTPM(ctx context.Context, id api.TPMIdentity, from netip.AddrPort) (c api.TPMChallenge, err error) {
	r := d.received(ctx, countersign.EnrollRequest{Fleet: id.Fleet, Door: "rest", Remote: from})
	if err = r.mayGuess(); err == nil {
		c, err = d.challengeTPM(ctx, cmp.Or(id.Fleet, countersign.DefaultFleet), tpmEvidence(id))
	}
	if err != nil {
		return api.TPMChallenge{}, r.refused(ctx, err)
	}
	return c, nil
}

func tpmEvidence(id api.TPMIdentity) attest.TPMEvidence {
	return attest.TPMEvidence{EKPublic: id.EKPublic, EKCertificate: id.EKCertificate, EKChain: id.EKChain, AKPublic: id.AKPublic}
}

func (d *Authority) challengeTPM(ctx context.Context, fleet string, ev attest.TPMEvidence) (out api.TPMChallenge, err error) {
	o, err := d.tpmOptions(ctx, fleet, ev)
	if err != nil {
		return out, err
	}
	c, expect, err := attest.ChallengeTPM(ev, o)
	if err != nil {
		return out, err
	}
	s := tpmSession{Fleet: fleet, Expect: expect, Expires: d.Now().Add(tpmSessionLife)}
	text, err := json.Marshal(s)
	if err != nil {
		return out, fmt.Errorf("encode a TPM session: %w", err)
	}
	return api.TPMChallenge{
		Session:    base64.RawURLEncoding.EncodeToString(d.Sealer.Seal(text, tpmContext)),
		Credential: c.Credential, EncryptedSecret: c.EncryptedSecret, File: c.File(), Nonce: c.Nonce, Expires: s.Expires.UTC(),
	}, nil
}

// tpmOptions are whom the fleet trusts to vouch for a chip.
func (d *Authority) tpmOptions(ctx context.Context, fleet string, ev attest.TPMEvidence) (attest.TPMOptions, error) {
	f, err := d.Registry.Fleet(ctx, d.DB, fleet)
	if err != nil {
		return attest.TPMOptions{}, err
	}
	o := attest.TPMOptions{Now: d.Now(), WeakKeys: d.CA.WeakKeys, PCRs: map[int][]byte{}}
	if o.Anchors, _, err = d.CA.Anchors(ctx, d.DB, f.Rules.Authorities); err != nil {
		return o, err
	}
	for n, v := range f.Rules.PCRs {
		if o.PCRs[n], err = hex.DecodeString(v); err != nil {
			return o, fmt.Errorf("read the reference value of PCR %d: %w", n, err)
		}
	}
	hash, err := attest.EKHash(ev.EKPublic, d.CA.WeakKeys)
	if err != nil {
		return o, err
	}
	c, err := d.Registry.Find(ctx, d.DB, countersign.MethodTPM, hex.EncodeToString(hash[:]))
	switch {
	case err == nil && c.Fleet == fleet && c.State == registry.CredentialActive:
		o.RegisteredEK = append(o.RegisteredEK, hash)
	case err != nil && countersign.CodeOf(err) != countersign.NotFound:
		return o, err
	}
	return o, nil
}

// EnrollTPM takes the answer to a challenge and enrolls the device.
func (d *Authority) EnrollTPM(ctx context.Context, in api.TPMAnswer, req countersign.EnrollRequest) (*countersign.Grant, error) {
	ev := tpmEvidence(in.TPMIdentity)
	ev.Secret, ev.KeyPublic, ev.CertifyInfo, ev.CertifySignature = in.Secret, in.KeyPublic, in.CertifyInfo, in.CertifySignature
	ev.Quote, ev.QuoteSignature = in.Quote, in.QuoteSignature
	var err error
	if ev.PCRs, err = in.Registers(); err != nil {
		return nil, err
	}
	r := d.received(ctx, req)
	if err := r.mayGuess(); err != nil {
		return nil, r.refused(ctx, err)
	}
	proof, fleet, err := d.proveTPM(ctx, in.Session, ev, req.CSR)
	if err != nil {
		return nil, r.refused(ctx, err)
	}
	req.Fleet, req.Evidence = fleet, countersign.Evidence{TPM: proof}
	return d.Enroll(ctx, req)
}

func (d *Authority) proveTPM(ctx context.Context, session string, ev attest.TPMEvidence, csr []byte) (*countersign.TPMProof, string, error) {
	stale := countersign.Errorf(countersign.CredentialExpire, "the TPM session is unknown or over").WithNext("ask for a new challenge")
	sealed, err := base64.RawURLEncoding.DecodeString(session)
	if err != nil || len(sealed) > maxTPMSession {
		return nil, "", stale
	}
	text, err := d.Sealer.Open(sealed, tpmContext)
	if err != nil {
		return nil, "", stale
	}
	var s tpmSession
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, "", fmt.Errorf("decode a TPM session: %w", err)
	}
	if d.Now().After(s.Expires) {
		return nil, "", stale
	}
	req, err := pkcs10.Parse(csr)
	if err != nil {
		return nil, "", err
	}
	key, err := req.Key()
	if err != nil {
		return nil, "", err
	}
	o, err := d.tpmOptions(ctx, s.Fleet, ev)
	if err != nil {
		return nil, "", err
	}
	res, err := attest.AppraiseTPM(ev, key, s.Expect, o)
	if err != nil {
		return nil, "", err
	}
	return &countersign.TPMProof{
		RegistrationID: res.RegistrationID, EKHash: hex.EncodeToString(res.EKHash[:]), EKVerified: !res.Registered,
		Facts: map[string]string{
			"tpm_manufacturer": res.Model.Manufacturer, "tpm_model": res.Model.Model, "tpm_version": res.Model.Version,
			"key_name": hex.EncodeToString(res.KeyName), "pcrs": fmt.Sprint(res.PCRs),
		},
	}, s.Fleet, nil
}

// maxTPMSession bounds a session that comes back; ours are about 300 octets.
const maxTPMSession = 4096
