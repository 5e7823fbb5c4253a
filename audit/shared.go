package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/store"
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
	ended := []struct {
		query string
		args  []any
	}{{`SELECT 1 FROM device WHERE id = $1 AND (state = 'retired' OR revoked_at > $2)`, []any{e.Device, store.Micros(e.At)}}}
	if !e.Cert.IsZero() {
		ended = append(ended, struct {
			query string
			args  []any
		}{`SELECT 1 FROM certificate WHERE serial = $1 AND issuer = $2 AND (state = 'revoked' OR not_after < $3)`, []any{string(e.Cert.Serial), e.Cert.Issuer, store.Micros(w.now)}})
	}
	if id, ok := strings.CutPrefix(e.Data["credential"], "secret:"); ok {
		ended = append(ended, struct {
			query string
			args  []any
		}{`SELECT 1 FROM device_secret WHERE id = $1 AND (state <> 'active' OR expires_at > 0 AND expires_at < $2)`, []any{id, store.Micros(w.now)}})
	}
	for _, q := range ended {
		var one int
		err := w.DB.QueryRow(ctx, q.query, q.args...).Scan(&one)
		if err == nil {
			return false, nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return false, fmt.Errorf("look whether what was shared is still good: %w", store.Wrap(err))
		}
	}
	return true, nil
}
