package audit

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

func deviceFinding(d *countersign.Device, reason, format string, args ...any) *Finding {
	return &Finding{
		Reason: reason, Subject: "device:" + d.ID, Device: d.ID, Fleet: d.Fleet, Summary: fmt.Sprintf(format, args...),
		Evidence: map[string]string{"state": string(d.State), "created_at": stamp(d.CreatedAt)},
	}
}

// lookAtDevices reads all devices once.
func lookAtDevices(ctx context.Context, w *work) error {
	for after, more := "", true; more; more = after != "" {
		page, next, err := w.Registry.Devices(ctx, registry.Filter{After: after})
		if err != nil {
			return err
		}
		for i := range page {
			if err := w.lookAtDevice(ctx, &page[i]); err != nil {
				return err
			}
		}
		if err := w.lookAtRetired(ctx, page); err != nil {
			return err
		}
		after = next
	}
	return nil
}

func (w *work) lookAtDevice(ctx context.Context, d *countersign.Device) error {
	if d.State != countersign.DeviceActive && d.State != countersign.DeviceSuspended {
		return nil
	}
	rules := w.fleets[d.Fleet].Audit
	w.looked(1, NeverConnected, Inactive, Orphaned)
	w.found(Inactive, judgeInactive(d, rules, w.now))
	w.found(Orphaned, judgeOrphaned(d))
	unused := judgeUnused(d, rules, w.now)
	if unused == nil || !w.wants(NeverConnected) {
		return nil
	}
	// Seldom: its certificate may have been used where no session is opened, as for a
	// renewal, or at a broker that asks us.
	certs, err := ca.DeviceCertificates(ctx, w.DB, d.ID)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(certs, func(c countersign.Certificate) bool { return !c.UsedAt.IsZero() }) {
		w.found(NeverConnected, unused)
	}
	return nil
}

func judgeUnused(d *countersign.Device, r countersign.AuditRules, now time.Time) *Finding {
	age := now.Sub(d.CreatedAt)
	if d.State != countersign.DeviceActive || !d.LastSeen.IsZero() || age < threshold(r.Unused, defaultUnused) {
		return nil
	}
	return deviceFinding(d, "DEVICE_NEVER_CONNECTED", "%s has had an identity for %s and never used it", d.ID, days(age))
}

func judgeInactive(d *countersign.Device, r countersign.AuditRules, now time.Time) *Finding {
	gone := now.Sub(d.LastSeen)
	if d.State != countersign.DeviceActive || d.LastSeen.IsZero() || gone < threshold(r.Inactive, defaultInactive) {
		return nil
	}
	return deviceFinding(d, "DEVICE_PAST_INACTIVITY_THRESHOLD", "%s was not seen for %s and may still connect", d.ID, days(gone)).with("last_seen", stamp(d.LastSeen))
}

func judgeOrphaned(d *countersign.Device) *Finding {
	if d.Owner != "" {
		return nil
	}
	return deviceFinding(d, "DEVICE_WITHOUT_OWNER", "%s has no owner", d.ID)
}

// lookAtRetired looks what the retired ones of some devices could still connect or
// enroll with.
func (w *work) lookAtRetired(ctx context.Context, devices []countersign.Device) error {
	retired := map[string]*countersign.Device{}
	var ids []string
	for i := range devices {
		if d := &devices[i]; d.State == countersign.DeviceRetired {
			retired[d.ID] = d
			ids = append(ids, d.ID)
		}
	}
	if len(ids) == 0 || !w.wants(Offboarding) {
		return nil
	}
	w.looked(int64(len(ids)), Offboarding)
	for _, left := range []struct {
		reason, what string
		holders      func(context.Context, store.Reader, []string) ([]string, error)
	}{
		{"RETIRED_DEVICE_HAS_CERTIFICATE", "certificate", ca.Holders},
		{"RETIRED_DEVICE_HAS_SECRET", "secret", access.Holders},
		{"RETIRED_DEVICE_HAS_CREDENTIAL", "credential", registry.Holders},
	} {
		found, err := left.holders(ctx, w.DB, ids)
		if err != nil {
			return err
		}
		for _, id := range found {
			if d := retired[id]; d != nil { // one finding for each device
				w.found(Offboarding, deviceFinding(d, left.reason, "%s is retired and still has a %s", id, left.what))
				delete(retired, id)
			}
		}
	}
	return nil
}
