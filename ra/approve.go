package ra

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// pollAfter is when a device whose request waits should ask again: people take
// minutes at best.
const pollAfter = time.Minute

// approval gives the id of the approval that the request has; empty if it has not
// asked for one yet. While it waits or once it was rejected that is the answer.
func (d *Authority) approval(ctx context.Context, r *request, c *consideration) (string, error) {
	w, err := d.Registry.WaitingOf(ctx, d.DB, r.device, r.waitsAs(), c.evidence)
	if countersign.CodeOf(err) == countersign.NotFound {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	switch w.State {
	case registry.Approved:
		return w.ID, nil
	case registry.Rejected:
		next := "ask the operator"
		if w.Note != "" {
			next = "the operator says: " + w.Note
		}
		return "", countersign.Errorf(countersign.NotAllowed, "an operator rejected the enrollment of %s", r.device).WithNext(next)
	}
	return "", errPending(r.device)
}

// waitingOn names what a request that waits was made with.
type waitingOn struct{ evidence, device string }

// inTime checks that evidence is good now or, where its time is over, that it was when
// the same request began to wait for approval: then it was appraised, and people take
// longer to decide than a token is good.
func (d *Authority) inTime(ctx context.Context, rd store.Reader, r *request, on waitingOn, check func(now time.Time) error) error {
	over := check(d.Now())
	if code := countersign.CodeOf(over); code != countersign.CredentialExpire && code != countersign.CertExpired {
		return over
	}
	w, err := d.Registry.WaitingOf(ctx, rd, on.device, r.waitsAs(), on.evidence)
	switch {
	case countersign.CodeOf(err) == countersign.NotFound:
		return over
	case err != nil:
		return err
	}
	if err := check(w.CreatedAt); err != nil {
		return err
	}
	r.late = over
	return nil
}

// waitsAs is what a request is known by while it waits: its key or, where the door
// makes a new key at each try, the request that the device sent.
func (r *request) waitsAs() string {
	if len(r.Asked) == 0 {
		return r.keyHash
	}
	sum := sha256.Sum256(r.Asked)
	return hex.EncodeToString(sum[:])
}

func errPending(device string) error {
	return countersign.Errorf(countersign.Pending, "the enrollment of %s waits for an operator's approval", device).
		WithNext("ask again with the same key and the same evidence").WithRetry(pollAfter)
}

// await records a request that an operator has to decide, with its evidence, and
// asks the device to come back. A device that nobody registered stays unknown until
// it is approved: else asking would register it for the methods that want that.
// No error: the request has its certificate already, c.again.
func (d *Authority) await(ctx context.Context, r *request, c *consideration) error {
	w := registry.Waiting{
		Device: r.device, Fleet: r.fleet, Method: c.method, Evidence: c.evidence, KeyHash: r.waitsAs(), Facts: c.facts, Remote: r.Remote.String(), Via: r.Door,
	}
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := d.lockFor(ctx, tx, r); err != nil {
			return err
		}
		if c.method != countersign.MethodRecovery { // the same request may have been served since it was looked at
			var err error
			if c.standing, err = d.admission(ctx, tx, r, c.appraisal); err != nil || c.again != nil {
				return err
			}
		}
		if _, err := d.Registry.WaitingOf(ctx, tx, r.device, r.waitsAs(), c.evidence); countersign.CodeOf(err) != countersign.NotFound {
			return err // the same request came twice at once
		}
		s, err := d.Registry.Device(ctx, tx, r.device)
		if err == nil && s.State == countersign.DeviceRegistered {
			err = d.Registry.Move(ctx, tx, &s, countersign.DevicePending, "awaits approval")
		}
		if err != nil && countersign.CodeOf(err) != countersign.NotFound {
			return err
		}
		made, err := d.Registry.Await(ctx, tx, w, time.Duration(cmp.Or(c.fleet.Rules.ApprovalTTL, countersign.Span(countersign.DefaultApprovalTTL))))
		if err != nil {
			return err
		}
		e := r.event(countersign.EnrollWaiting, "awaits approval")
		e.Data = map[string]string{"request": made.ID, "method": string(c.method), "evidence": c.evidence}
		return d.Events.Append(ctx, tx, e)
	})
	if err != nil || c.again != nil {
		return err
	}
	return errPending(r.device)
}
