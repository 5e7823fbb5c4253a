package ra

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// CreateSecret returns a device a secret to connect with, and the secret itself where
// it was drawn here: it is kept nowhere.
func (d *Authority) CreateSecret(ctx context.Context, o access.SecretOrder, by By) (access.Secret, []byte, error) {
	o.By = by.Actor
	return d.makeSecret(ctx, o, by, nil)
}

// makeSecret records a secret, if the device may have it.
func (d *Authority) makeSecret(ctx context.Context, o access.SecretOrder, by By, may func(context.Context, *store.Tx, *registry.Entry) error) (access.Secret, []byte, error) {
	n, err := d.Access.Secrets.Prepare(ctx, o)
	if err != nil {
		return n.Secret, nil, err
	}
	err = d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		dev, err := d.lockDevice(ctx, tx, o.Device)
		if err != nil {
			return err
		}
		if may != nil {
			if err := may(ctx, tx, &dev); err != nil {
				return err
			}
		}
		stopped, err := d.Access.Secrets.Save(ctx, tx, n)
		if err != nil {
			return err
		}
		events, err := d.secretsStopped(ctx, tx, stopped, &dev, by)
		if err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, append(events, secretEvents(countersign.SecretCreated, []access.Secret{n.Secret}, &dev, by)...)...)
	})
	if err != nil {
		return n.Secret, nil, NotRecorded(err)
	}
	return n.Secret, n.Text, nil
}

// StopSecret ends one secret of a device for good, with the sessions that rest on it.
// One that is stopped already is no error: its sessions are cut again.
func (d *Authority) StopSecret(ctx context.Context, device, id, why string, by By) (s access.Secret, done countersign.Revocation, err error) {
	err = d.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		done = countersign.Revocation{Device: device, At: d.Now()}
		if err := registry.LockDevice(ctx, tx, device); err != nil {
			return err
		}
		dev, err := d.Registry.Device(ctx, tx, device)
		if err != nil {
			return err
		}
		s, err = d.Access.Secrets.Stop(ctx, tx, device, id, why)
		if countersign.CodeOf(err) == countersign.Conflict && !s.Active() && by.Actor != countersign.System {
			events := secretEvents(countersign.SecretStopped, []access.Secret{s}, &dev, by)
			Again(&done, &events[0], done.At)
			return d.Events.AppendAct(ctx, tx, &done, events...)
		}
		if err != nil {
			return err
		}
		events, err := d.secretsStopped(ctx, tx, []access.Secret{s}, &dev, by)
		if err != nil {
			return err
		}
		return d.Events.AppendAct(ctx, tx, &done, events...)
	})
	if err != nil {
		err = NotRecorded(err)
	}
	return s, done, err
}

// Secrets lists the secrets of a device, the newest first.
func (d *Authority) Secrets(ctx context.Context, device string) ([]access.Secret, error) {
	if _, err := d.Registry.Device(ctx, d.DB, device); err != nil {
		return nil, err
	}
	return d.Access.Secrets.Of(ctx, d.DB, device)
}

// stopSecrets ends all secrets of a device that loses its identity.
func (d *Authority) stopSecrets(ctx context.Context, tx *store.Tx, dev *registry.Entry, by By, why string) ([]countersign.Event, error) {
	if err := access.DropBrokerSessions(ctx, tx, dev.ID); err != nil {
		return nil, err
	}
	stopped, err := d.Access.Secrets.StopAll(ctx, tx, dev.ID, why)
	return secretEvents(countersign.SecretStopped, stopped, dev, by), err
}

func secretEvents(t countersign.EventType, list []access.Secret, dev *registry.Entry, by By) []countersign.Event {
	events := make([]countersign.Event, 0, len(list))
	for i := range list {
		s := &list[i]
		e := by.Event(t)
		e.Device, e.Fleet, e.Reason = dev.ID, dev.Fleet, s.Reason
		e.Data = map[string]string{"secret": s.ID, "slot": string(s.Slot), "kind": string(s.Kind)}
		if !s.ExpiresAt.IsZero() {
			e.Data["expires_at"] = s.ExpiresAt.UTC().Format(time.RFC3339)
		}
		events = append(events, e)
	}
	return events
}

// secretsStopped ends the access tokens that were issued for secrets and returns the
// events, which end the sessions that rest on either.
func (d *Authority) secretsStopped(ctx context.Context, tx *store.Tx, list []access.Secret, dev *registry.Entry, by By) ([]countersign.Event, error) {
	events := secretEvents(countersign.SecretStopped, list, dev, by)
	for i := range list {
		tokens, err := EndTokens(ctx, tx, d.Access.Tokens, list[i].Credential(), by)
		if err != nil {
			return nil, err
		}
		events = append(events, tokens...)
	}
	return events, nil
}
