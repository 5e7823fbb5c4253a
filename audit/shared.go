package audit

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/detect"
)

const (
	// foundWindow is how far back what the detectors found is looked at, as at AWS.
	foundWindow = 31 * 24 * time.Hour
	// maxFound bounds the identities and devices that are told apart: some 50 MB.
	maxFound = 100_000
)

// shared is what the detectors found about one identity, or about one device's
// client ids.
type shared struct {
	check, reason string
	last          countersign.Event // the newest finding
	times         int
}

// lookAtShared reads what the detectors found in the last month about identities in
// several places, and reports what can still be used. The audit does not judge
// sessions by itself: one fact has one judgment.
func lookAtShared(ctx context.Context, w *work) error {
	found := map[string]*shared{}
	var order []string
	err := w.recent(ctx, countersign.FindingRaised, foundWindow, func(e *countersign.Event) {
		s, ok := sharedBy(e)
		if !ok {
			return
		}
		w.looked(1, s.check)
		key := s.check + " " + e.Device + " " + e.Cert.String() + " " + e.Data["credential"]
		if have := found[key]; have != nil {
			have.times++
		} else if len(found) < maxFound {
			found[key] = &s
			order = append(order, key)
		}
	})
	if err != nil {
		return err
	}
	for _, key := range order {
		s := found[key]
		good, err := w.stillUsable(ctx, &s.last)
		if err != nil {
			return err
		}
		if good {
			w.report(s.check, s.finding())
		}
	}
	return nil
}

// sharedBy returns which check a finding belongs to; false for other findings.
func sharedBy(e *countersign.Event) (s shared, ok bool) {
	s = shared{last: *e, times: 1}
	switch rule := e.Data["rule"]; {
	case e.Device == "":
		return s, false
	case rule == detect.ClientIDConflict:
		s.check, s.reason = ConflictingClients, "DUPLICATE_CLIENT_ID_ACROSS_CONNECTIONS"
	case rule == detect.SharedCertificate && !e.Cert.IsZero():
		s.check, s.reason = CertificateShared, "CERTIFICATE_SHARED_BY_MULTIPLE_DEVICES"
	case rule == detect.SharedCertificate:
		s.check, s.reason = SecretShared, "SECRET_SHARED_BY_MULTIPLE_DEVICES"
	default:
		return s, false
	}
	return s, true
}

func (s *shared) finding() Finding {
	e := &s.last
	evidence := maps.Clone(e.Data)
	for _, name := range []string{"rule", "severity", "subject"} {
		delete(evidence, name)
	}
	evidence["findings"], evidence["last_at"], evidence["event"] = strconv.Itoa(s.times), stamp(e.At), strconv.FormatInt(e.Seq, 10)
	return Finding{
		Reason: s.reason, Severity: countersign.Severity(e.Data["severity"]), Subject: "device:" + e.Device, Device: e.Device, Fleet: e.Fleet, Cert: e.Cert,
		Summary: e.Reason, Evidence: evidence,
	}
}

// stillUsable reports whether what was found in several places can still be used: a
// certificate or secret that was revoked since, or whose device is gone, is settled.
func (w *work) stillUsable(ctx context.Context, e *countersign.Event) (bool, error) {
	device, err := w.Registry.Device(ctx, w.DB, e.Device)
	if countersign.CodeOf(err) == countersign.NotFound {
		return true, nil
	}
	if err != nil || device.State == countersign.DeviceRetired || device.RevokedAt.After(e.At) {
		return false, err
	}
	if !e.Cert.IsZero() {
		certs, err := ca.ByRef(ctx, w.DB, []countersign.CertRef{e.Cert})
		if err != nil || len(certs) > 0 && (certs[0].State == countersign.CertRevoked || certs[0].NotAfter.Before(w.now)) {
			return false, err
		}
	}
	if id, ok := strings.CutPrefix(e.Data["credential"], "secret:"); ok {
		s, known, err := access.SecretByID(ctx, w.DB, id)
		if err != nil || known && !s.Usable(w.now) {
			return false, err
		}
	}
	return true, nil
}
