package provision

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Approve lets a waiting request through at the device's next try.
func (p *Provisioner) Approve(ctx context.Context, id, note string, by ra.By) (api.Waiting, error) {
	return p.decide(ctx, id, registry.Approved, note, by)
}

// Reject turns a waiting request down.
func (p *Provisioner) Reject(ctx context.Context, id, note string, by ra.By) (api.Waiting, error) {
	return p.decide(ctx, id, registry.Rejected, note, by)
}

func (p *Provisioner) decide(ctx context.Context, id string, to api.WaitingState, note string, by ra.By) (w api.Waiting, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if w, err = p.Registry.Waiting(ctx, tx, id); err != nil {
			return err
		}
		if err := registry.LockDevice(ctx, tx, w.Device); err != nil {
			return err
		}
		if w, err = p.Registry.Decide(ctx, tx, id, registry.Ruling{State: to, By: by.Actor, Note: note}); err != nil {
			return err
		}
		e := by.Event(countersign.EnrollApproved)
		if to == registry.Rejected {
			e = by.Event(countersign.EnrollRejected)
			dev, err := p.Registry.Device(ctx, tx, w.Device)
			if err != nil && countersign.CodeOf(err) != countersign.NotFound {
				return err
			}
			if dev.State == countersign.DevicePending {
				if err := p.Registry.Move(ctx, tx, &dev, countersign.DeviceRegistered, "enrollment rejected"); err != nil {
					return err
				}
			}
		}
		e.Device, e.Fleet, e.Reason = w.Device, w.Fleet, note
		e.Data = map[string]string{"request": w.ID, "method": string(w.Method), "evidence": w.Evidence}
		return p.Events.Append(ctx, tx, e)
	})
	return w, err
}
