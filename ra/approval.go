package ra

import (
	"cmp"
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// pollAfter is when a device whose request waits should ask again: people take
// minutes at best.
const pollAfter = time.Minute

// approval returns the id of the approval that the request has; empty if it has not
// asked for one yet. While it waits or once it was rejected that is the answer.
func (e *enrollment) approval(ctx context.Context) (string, error) {
	w, err := e.Registry.WaitingOf(ctx, e.DB, e.request.device, e.waitsAs(), e.evidence)
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
		return "", countersign.Errorf(countersign.NotAllowed, "an operator rejected the enrollment of %s", e.request.device).WithNext(next)
	}
	return "", errPending(e.request.device)
}

func errPending(device string) error {
	return countersign.Errorf(countersign.Pending, "the enrollment of %s waits for an operator's approval", device).
		WithNext("ask again with the same key and the same evidence").WithRetry(pollAfter)
}

// await records a request that an operator has to decide, with its evidence, and
// asks the device to come back. A device that is not registered stays unknown until
// it is approved: else asking would register it for the methods that want that.
// No error: the request has its certificate already, c.again.
func (e *enrollment) await(ctx context.Context) error {
	w := api.Waiting{
		Device: e.request.device, Fleet: e.request.fleet, Method: e.method, Evidence: e.evidence, KeyHash: e.waitsAs(), Facts: e.facts, Remote: e.Remote.String(), Via: e.Door,
	}
	err := e.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := e.lockFor(ctx, tx); err != nil {
			return err
		}
		if e.method != countersign.MethodRecovery { // the same request may have been served since it was looked at
			if err := e.eligible(ctx, tx); err != nil || e.again != nil {
				return err
			}
		}
		if _, err := e.Registry.WaitingOf(ctx, tx, e.request.device, e.waitsAs(), e.evidence); countersign.CodeOf(err) != countersign.NotFound {
			return err // the same request came twice at once
		}
		s, err := e.Registry.Device(ctx, tx, e.request.device)
		if err == nil && s.State == countersign.DeviceRegistered {
			err = e.Registry.Move(ctx, tx, &s, countersign.DevicePending, "awaits approval")
		}
		if err != nil && countersign.CodeOf(err) != countersign.NotFound {
			return err
		}
		made, err := e.Registry.Await(ctx, tx, w, time.Duration(cmp.Or(e.fleet.Rules.ApprovalTTL, countersign.Span(countersign.DefaultApprovalTTL))))
		if err != nil {
			return err
		}
		ev := e.event(countersign.EnrollWaiting, "awaits approval")
		ev.Data = map[string]string{"request": made.ID, "method": string(e.method), "evidence": e.evidence}
		return e.Events.Append(ctx, tx, ev)
	})
	if err != nil || e.again != nil {
		return err
	}
	return errPending(e.request.device)
}
