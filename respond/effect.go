package respond

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/store"
)

// standing is what an alert is about, as it is now.
type standing struct {
	alert    Alert
	device   countersign.Device // zero where the alert names none that is known
	revoked  bool               // it lost its identity before
	certs    []countersign.Certificate
	sessions []countersign.Session // all live ones of this node
	fork     bool                  // an alert that is not closed says that the device has two holders
}

// Actions returns what can be done about an alert and what would happen now.
func (d *Responder) Actions(ctx context.Context, id string) ([]api.AlertAction, error) {
	s, err := d.look(ctx, id)
	if err != nil {
		return nil, err
	}
	return []api.AlertAction{s.suspend(), s.reactivate(), s.revoke(), s.block()}, nil
}

func (d *Responder) look(ctx context.Context, id string) (s standing, err error) {
	if s.alert, err = get(ctx, d.DB, id); err != nil {
		return s, err
	}
	if d.Sessions != nil {
		s.sessions = d.Sessions()
	}
	if s.alert.Device == "" {
		return s, nil
	}
	e, err := d.Registry.Device(ctx, d.DB, s.alert.Device)
	if countersign.CodeOf(err) == countersign.NotFound {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.device, s.revoked = e.Device, !e.RevokedAt.IsZero()
	if s.certs, err = ca.DeviceCertificates(ctx, d.DB, e.ID); err != nil {
		return s, err
	}
	s.fork, err = forked(ctx, d.DB, e.ID)
	return s, err
}

// forked reports whether an alert of a fork of the device is not closed.
func forked(ctx context.Context, r store.Reader, device string) (bool, error) {
	n, err := store.Count(ctx, r, `SELECT COUNT(*) FROM alert WHERE device = $1 AND rule = $2 AND state <> 'closed'`, device, detect.RenewalFork)
	if err != nil {
		return false, fmt.Errorf("read the alerts of %s: %w", device, err)
	}
	return n > 0, nil
}

// notIn counts the certificates in none of the states.
func (s *standing) notIn(states ...countersign.CertState) (n int) {
	for i := range s.certs {
		if !slices.Contains(states, s.certs[i].State) {
			n++
		}
	}
	return n
}

// live counts the sessions that end with the device.
func (s *standing) live() (n int) {
	for _, v := range s.sessions {
		if v.Device == s.device.ID || slices.Contains(v.Scope, s.device.ID) {
			n++
		}
	}
	return n
}

// none returns why an act on a device has no object; empty: it has one.
func (s *standing) none() string {
	if s.alert.Device == "" {
		return "the alert names no device"
	}
	if s.device.ID == "" {
		return "there is no device " + s.alert.Device
	}
	return ""
}

func (s *standing) suspend() api.AlertAction {
	a := api.AlertAction{Name: string(countersign.MitigateSuspend), Effect: s.none()}
	switch {
	case a.Effect != "":
	case s.device.State == countersign.DeviceSuspended:
		a.Possible, a.Sessions, a.Certificates = true, s.live(), s.notIn(countersign.CertRevoked, countersign.CertHeld)
		a.Effect = fmt.Sprintf("%s is suspended already; it is suspended again, which ends %s", s.device.ID, count(a.Sessions, "session"))
		a.Undo = "reactivate"
	case s.device.State != countersign.DeviceActive && s.device.State != countersign.DeviceRegistered:
		a.Effect = fmt.Sprintf("%s is %s", s.device.ID, s.device.State)
	default:
		a.Possible, a.Sessions, a.Certificates = true, s.live(), s.notIn(countersign.CertRevoked, countersign.CertHeld)
		a.Effect = fmt.Sprintf("ends %s; %s on hold in the CRL; it cannot connect, renew or enroll; everything it needs to come back is kept",
			count(a.Sessions, "session"), goes(a.Certificates))
		a.Undo = "reactivate"
	}
	return a
}

func goes(n int) string {
	if n == 1 {
		return "1 certificate goes"
	}
	return fmt.Sprintf("%d certificates go", n)
}

func (s *standing) reactivate() api.AlertAction {
	a := api.AlertAction{Name: string(reactivate), Effect: s.none()}
	switch {
	case a.Effect != "":
	case s.device.State != countersign.DeviceSuspended:
		a.Effect = fmt.Sprintf("%s is %s, not suspended", s.device.ID, s.device.State)
	default:
		a.Possible, a.Undo = true, "suspend"
		var back []string
		for i := range s.certs {
			if c := &s.certs[i]; c.State == countersign.CertHeld {
				back = append(back, nameOf(c))
			}
		}
		switch a.Certificates = len(back); {
		case len(back) == 0:
			a.Effect = "it may enroll again; it has no certificate that could be good again"
		case s.fork:
			a.Effect = "brings back " + strings.Join(back, ", ") + " alone; the record cannot tell whether the device or the other holder has it, and the holder of it " +
				"connects as the device at once; the other holder's certificates stay revoked, and an alert opens when one of them is shown; " +
				"if you do not know that the device has this one, revoke the device and enroll it anew"
		default:
			a.Effect = count(len(back), "certificate") + " good again: " + some(back) + "; it can connect at once with what it had"
		}
	}
	return a
}

// nameOf is a certificate as an operator can compare it with the device.
func nameOf(c *countersign.Certificate) string {
	used := "never used"
	if !c.UsedAt.IsZero() {
		used = "first used " + c.UsedAt.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("certificate %s (%s)", c.Serial, used)
}

// maxNamed bounds how many certificates a preview names.
const maxNamed = 3

// some lists the first few of many.
func some(list []string) string {
	if n := len(list); n > maxNamed {
		return strings.Join(list[:maxNamed], ", ") + fmt.Sprintf(" and %d more", n-maxNamed)
	}
	return strings.Join(list, ", ")
}

func (s *standing) revoke() api.AlertAction {
	a := api.AlertAction{Name: string(countersign.MitigateRevoke), Effect: s.none()}
	switch {
	case a.Effect != "":
	case s.device.State == countersign.DeviceRegistered && s.revoked && s.notIn(countersign.CertRevoked) == 0:
		a.Possible, a.Sessions = true, s.live()
		a.Effect = fmt.Sprintf("%s was revoked already; it is revoked again, which ends %s", s.device.ID, count(a.Sessions, "session"))
	case s.device.State != countersign.DeviceActive && s.device.State != countersign.DeviceSuspended:
		a.Effect = fmt.Sprintf("%s is %s and has no identity to lose", s.device.ID, s.device.State)
	default:
		a.Possible, a.Sessions, a.Certificates = true, s.live(), s.notIn(countersign.CertRevoked)
		a.Effect = fmt.Sprintf("ends %s; %s into the CRL for good; this cannot be undone: the device must enroll anew with a token made for it",
			count(a.Sessions, "session"), goes(a.Certificates))
	}
	return a
}

func (s *standing) block() api.AlertAction {
	a := api.AlertAction{Name: string(countersign.MitigateBlock)}
	network, err := s.alert.network()
	if err != nil {
		a.Effect = "the alert names no address"
		return a
	}
	here := map[string]bool{}
	for _, v := range s.sessions {
		if from, ok := countersign.SourceOf(v.Remote.Addr()); ok && network.Overlaps(from) {
			here[v.Device] = true
		}
	}
	a.Possible = true
	a.Effect = fmt.Sprintf("refuses everything new from %s for an hour, devices with good certificates too; sessions that are open stay", network)
	if n := len(here); n > 0 {
		a.Effect += fmt.Sprintf("; %s connected from there now could not come back until then", count(n, "device"))
	}
	a.Undo = "the removal of the block of " + network.String()
	return a
}
