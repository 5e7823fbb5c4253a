package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxSuppressions bounds the list that each finding is held against.
	maxSuppressions = 1000
	// maxSuppression is how long something may be left alone before a person must
	// decide again.
	maxSuppression = 366 * 24 * time.Hour
	// minSuppression is worth the trouble.
	minSuppression = time.Minute
	// endedKept is for how long one that has ended is still shown.
	endedKept = 90 * 24 * time.Hour
	// maxWhy and maxSubject bound what people write.
	maxWhy     = 500
	maxSubject = 200
)

// Suppression leaves findings of a check alone for a time, for a reason. They are
// still found, counted apart and shown.
type Suppression struct {
	ID        string
	Check     string
	Subject   string // of the findings, or fleet:<name> of their fleet; * means any text
	Reason    string
	CreatedBy countersign.Actor
	CreatedAt time.Time
	EndsAt    time.Time
}

// covers reports whether the suppression is for the finding.
func (s *Suppression) covers(f *Finding) bool {
	return s.Check == f.Check && (matches(s.Subject, f.Subject) || f.Fleet != "" && matches(s.Subject, "fleet:"+f.Fleet))
}

// suppressedBy returns the id of the first that covers the finding; empty if none.
func suppressedBy(list []Suppression, f Finding) string {
	for i := range list {
		if list[i].covers(&f) {
			return list[i].ID
		}
	}
	return ""
}

// matches compares a text with a pattern in which * means any text.
func matches(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	last := len(parts) - 1
	if last == 0 {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, p := range parts[1:last] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[last])
}

// Suppress leaves findings alone until s.EndsAt. Reason and end are mandatory.
func (a *Auditor) Suppress(ctx context.Context, s Suppression, via string) (Suppression, error) {
	now := a.Now().UTC().Truncate(time.Microsecond)
	s.Reason = strings.TrimSpace(s.Reason)
	if err := s.check(now); err != nil {
		return s, err
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	s.ID, s.CreatedAt, s.EndsAt = hex.EncodeToString(b[:]), now, s.EndsAt.UTC().Truncate(time.Microsecond)
	err := a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, "audit.suppression"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM audit_suppression WHERE ends_at < $1`, store.Micros(now.Add(-endedKept))); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM audit_suppression`).Scan(&n); err != nil {
			return err
		}
		if n >= maxSuppressions {
			return countersign.Errorf(countersign.TooLarge, "there are %d suppressions already", n).WithNext("end some, or fix what they hide")
		}
		_, err := tx.Exec(ctx, `INSERT INTO audit_suppression (id, name, subject, reason, created_by, created_at, ends_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			s.ID, s.Check, s.Subject, s.Reason, string(s.CreatedBy), store.Micros(s.CreatedAt), store.Micros(s.EndsAt))
		if err != nil {
			return fmt.Errorf("record a suppression: %w", err)
		}
		return a.Events.Append(ctx, tx, s.event(countersign.AuditSuppressed, s.CreatedBy, via, s.Reason))
	})
	return s, err
}

func (s *Suppression) check(now time.Time) error {
	if _, err := named([]string{s.Check}); err != nil {
		return err
	}
	bad := func(format string, args ...any) *countersign.Error {
		return countersign.Errorf(countersign.BadRequest, format, args...)
	}
	switch {
	case s.Subject == "" || len(s.Subject) > maxSubject:
		return bad("the subject has %d characters, not 1 to %d", len(s.Subject), maxSubject).
			WithNext("copy it from the finding: device:pump-7; * stands for any text")
	case s.Reason == "" || len(s.Reason) > maxWhy:
		return bad("the reason has %d characters, not 1 to %d", len(s.Reason), maxWhy)
	case s.EndsAt.Sub(now) < minSuppression || s.EndsAt.Sub(now) > maxSuppression:
		return bad("the end is not between %s and %d days from now", minSuppression, int(maxSuppression.Hours()/24))
	}
	return nil
}

func (s *Suppression) event(t countersign.EventType, by countersign.Actor, via, reason string) countersign.Event {
	return countersign.Event{Type: t, Actor: by, Via: via, Reason: reason, Data: map[string]string{
		"suppression": s.ID, "check": s.Check, "subject": s.Subject, "ends_at": s.EndsAt.Format(time.RFC3339),
	}}
}

// Unsuppress ends a suppression at once.
func (a *Auditor) Unsuppress(ctx context.Context, id string, by countersign.Actor, via string) (Suppression, error) {
	var s Suppression
	err := a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		list, err := suppressionRows(ctx, tx, `WHERE id = $1`, id)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return countersign.Errorf(countersign.NotFound, "there is no suppression %.80q", id).WithNext("look for it in the list of suppressions")
		}
		s = list[0]
		if _, err := tx.Exec(ctx, `DELETE FROM audit_suppression WHERE id = $1`, id); err != nil {
			return fmt.Errorf("remove a suppression: %w", err)
		}
		return a.Events.Append(ctx, tx, s.event(countersign.AuditUnsuppressed, by, via, ""))
	})
	return s, err
}

// Suppressions lists suppressions by id, those too that ended not long ago.
func (a *Auditor) Suppressions(ctx context.Context, after string, limit int) (list []Suppression, next string, err error) {
	limit = store.PageSize(limit)
	list, err = suppressionRows(ctx, a.DB, `WHERE id > $1 AND ends_at >= $2 ORDER BY id LIMIT $3`, after, store.Micros(a.Now().Add(-endedKept)), limit+1)
	if err != nil {
		return nil, "", err
	}
	list, next = store.Page(list, limit, func(s *Suppression) string { return s.ID })
	return list, next, nil
}

func (a *Auditor) activeSuppressions(ctx context.Context) ([]Suppression, error) {
	return suppressionRows(ctx, a.DB, `WHERE ends_at > $1 ORDER BY id LIMIT $2`, store.Micros(a.Now()), maxSuppressions)
}

func suppressionRows(ctx context.Context, r store.Reader, where string, args ...any) (list []Suppression, err error) {
	list, err = store.List(ctx, r, func(row store.Row) (s Suppression, err error) {
		var created, ends int64
		err = row.Scan(&s.ID, &s.Check, &s.Subject, &s.Reason, &s.CreatedBy, &created, &ends)
		s.CreatedAt, s.EndsAt = store.Time(created), store.Time(ends)
		return s, err
	}, `SELECT id, name, subject, reason, created_by, created_at, ends_at FROM audit_suppression `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read suppressions: %w", err)
	}
	return list, nil
}
