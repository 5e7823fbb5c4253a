package provision

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// RegistrationCode draws a code for the proof of possession of an external CA.
func (p *Provisioner) RegistrationCode(ctx context.Context, by ra.By) (code string, until time.Time, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		code, until, err = p.CA.NewRegistrationCode(ctx, tx, by.Actor)
		return err
	})
	return code, until, err
}

// RegisterAuthority brings an external CA in.
func (p *Provisioner) RegisterAuthority(ctx context.Context, g ca.Registration, by ra.By) (a countersign.Authority, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if a, err = p.CA.Register(ctx, tx, g); err != nil {
			return err
		}
		e := by.Event(countersign.AuthorityRegistered)
		e.Cert = countersign.CertRef{Issuer: a.ID}
		e.Data = map[string]string{"subject": a.Subject, "proof": "possession"}
		if g.Override {
			e.Reason, e.Data["proof"] = "without proof of possession: "+g.Reason, "none"
		}
		return p.Events.Append(ctx, tx, e)
	})
	if err != nil {
		return a, err
	}
	return a, p.CA.Reload(ctx)
}

// SetCRLs brings the revocation lists of a registered authority up to date; see ca.SetCRLs.
// why is the operator's reason for an override. Where nothing changed there is no event.
func (p *Provisioner) SetCRLs(ctx context.Context, id string, l ca.Lists, why string, by ra.By) error {
	for try := 1; ; try++ {
		err := p.followCRLs(ctx, id, l, why, by)
		if errors.Is(err, ca.ErrListsMoved) && try < maxListTries {
			continue
		}
		if err != nil {
			return err
		}
		return p.CA.Reload(ctx)
	}
}

// maxListTries bounds how often lists are planned anew because others changed the same
// authority meanwhile: each time one of those got through.
const maxListTries = 10

func (p *Provisioner) followCRLs(ctx context.Context, id string, l ca.Lists, why string, by ra.By) error {
	plan, err := p.CA.PlanCRLs(ctx, id, l)
	if err != nil || !plan.Changed {
		return err
	}
	return p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := ca.SetCRLs(ctx, tx, plan); err != nil {
			return err
		}
		e := by.Event(countersign.AuthorityUpdated)
		e.Cert = countersign.CertRef{Issuer: id}
		e.Data = map[string]string{"lists": strconv.Itoa(len(l.CRLs))}
		if l.Override {
			e.Reason, e.Data["override"] = "all lists replaced: "+why, "true"
		}
		return p.Events.Append(ctx, tx, e)
	})
}
