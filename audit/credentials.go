package audit

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

const (
	// manyUses of one credential are more than a line makes in a shift.
	manyUses = 1000
	// farEnd is an end that no one will remember.
	farEnd = 90 * 24 * time.Hour
	// boundsMissing of the four is a credential without bounds.
	boundsMissing = 3
	// leakWindow is how far back a sight of a credential in wrong hands is looked for:
	// one that was left active for longer was left so on purpose.
	leakWindow = 365 * 24 * time.Hour
	// tokenUnused is for how long an operator token may be unused.
	tokenUnused = 90 * 24 * time.Hour
	// tokenLife is the longest life of a token that may do everything.
	tokenLife = 180 * 24 * time.Hour
)

func credentialFinding(c *registry.Credential, reason, format string, args ...any) *Finding {
	f := &Finding{
		Reason: reason, Subject: "credential:" + c.ID, Fleet: c.Fleet, Device: c.Device, Summary: fmt.Sprintf(format, args...),
		Evidence: map[string]string{"kind": string(c.Kind), "label": c.Label, "created_at": stamp(c.CreatedAt), "uses": strconv.Itoa(c.Uses)},
	}
	if !c.ExpiresAt.IsZero() {
		f.Evidence["expires_at"] = stamp(c.ExpiresAt)
	}
	return f
}

// nameOf returns what a person calls the credential.
func nameOf(c *registry.Credential) string { return string(c.Kind) + " " + cmp.Or(c.Label, c.ID) }

// ended reports whether the credential works no more by itself: too old, or spent.
func ended(c *registry.Credential, now time.Time) bool {
	return !c.ExpiresAt.IsZero() && !c.ExpiresAt.After(now) || c.UsesMax > 0 && c.Uses >= c.UsesMax
}

// lookAtCredentials reads all enrollment credentials once, and all secrets.
func lookAtCredentials(ctx context.Context, w *work) error {
	leaks, err := w.leaks(ctx)
	if err != nil {
		return err
	}
	for c, err := range w.credentials(ctx) {
		if err != nil {
			return err
		}
		if c.Kind == countersign.MethodKey || c.Kind == countersign.MethodGroup {
			w.looked(1, SecretAge)
			w.found(SecretAge, judgeEnrollmentKey(&c, w.fleets[c.Fleet].Audit, w.now))
		}
		if ended(&c, w.now) {
			continue
		}
		w.looked(1, ClaimUnbounded, CredentialLeaked)
		w.found(ClaimUnbounded, judgeBounds(&c, w.fleets[c.Fleet], w.now))
		if l, ok := leaks[c.ID]; ok && l.at.After(c.CreatedAt) {
			w.found(CredentialLeaked, credentialFinding(&c, "CREDENTIAL_SEEN_IN_WRONG_HANDS", "%s: %s; it still works", nameOf(&c), l.why).
				with("seen_at", stamp(l.at)).with("seen_from", l.remote))
		}
	}
	return w.lookAtSecrets(ctx)
}

// credentials reads the active credentials.
func (w *work) credentials(ctx context.Context) iter.Seq2[registry.Credential, error] {
	return store.Pages(func(after string) ([]registry.Credential, string, error) {
		page, next, err := w.Registry.Credentials(ctx, registry.CredentialFilter{After: after})
		return slices.DeleteFunc(page, func(c registry.Credential) bool { return c.State != registry.CredentialActive }), next, err
	})
}

// judgeBounds counts the bounds that a credential for many devices lacks. What the
// fleet's rules bound is bounded.
func judgeBounds(c *registry.Credential, r countersign.Rules, now time.Time) *Finding {
	if c.Device != "" || c.UsesMax == 1 {
		return nil
	}
	var missing []string
	if (c.UsesMax == 0 || c.UsesMax > manyUses) && !slices.Contains(r.Approval, c.Kind) {
		missing = append(missing, "uses")
	}
	if len(c.Networks) == 0 && len(r.Networks) == 0 {
		missing = append(missing, "networks")
	}
	if len(c.Devices) == 0 && !slices.Contains(r.Registered, c.Kind) {
		missing = append(missing, "devices")
	}
	if c.ExpiresAt.IsZero() || c.ExpiresAt.Sub(now) > farEnd {
		missing = append(missing, "end")
	}
	if len(missing) < boundsMissing {
		return nil
	}
	f := credentialFinding(c, "CREDENTIAL_WITHOUT_BOUNDS", "%s admits devices to fleet %s with no bound on %s", nameOf(c), c.Fleet, strings.Join(missing, ", ")).
		with("unbounded", strings.Join(missing, ","))
	if len(missing) > boundsMissing {
		f.Severity = countersign.SeverityHigh
	}
	return f
}

// leak is the last sight of a credential in wrong hands.
type leak struct {
	at          time.Time
	why, remote string
}

// leaks reads from the log which credentials were seen in wrong hands.
func (w *work) leaks(ctx context.Context) (map[string]leak, error) {
	found := map[string]leak{}
	if !w.wants(CredentialLeaked) {
		return found, nil
	}
	for _, kind := range []countersign.EventType{countersign.FindingClaim, countersign.FindingGroupKey} {
		err := w.recent(ctx, kind, leakWindow, func(e *countersign.Event) {
			id := e.Data["credential"]
			if _, later := found[id]; id != "" && !later && len(found) < maxFound {
				found[id] = leak{e.At, e.Reason, e.Remote}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// lookAtSecrets looks at the age of the secrets that devices connect with.
func (w *work) lookAtSecrets(ctx context.Context) error {
	for after, more := "", true; more; more = after != "" {
		page, next, err := access.ActiveSecrets(ctx, w.DB, after)
		if err != nil {
			return err
		}
		ids := make([]string, len(page))
		for i := range page {
			ids[i] = page[i].Device
		}
		devices, err := registry.DevicesByID(ctx, w.DB, ids)
		if err != nil {
			return err
		}
		for i := range page {
			if d, ok := devices[page[i].Device]; ok && d.State != countersign.DeviceRetired {
				w.looked(1, SecretAge)
				w.found(SecretAge, judgeSecret(&page[i], d.Fleet, w.fleets[d.Fleet].Audit, w.now))
			}
		}
		after = next
	}
	return nil
}

func judgeSecret(s *access.Secret, fleet string, r countersign.AuditRules, now time.Time) *Finding {
	age := now.Sub(s.CreatedAt)
	if age < threshold(r.SecretAge, defaultSecretAge) {
		return nil
	}
	return &Finding{
		Reason: "SECRET_PAST_AGE_THRESHOLD", Subject: "device:" + s.Device, Device: s.Device, Fleet: fleet,
		Summary:  fmt.Sprintf("the %s of %s is %s old", s.Kind, s.Device, days(age)),
		Evidence: map[string]string{"kind": string(s.Kind), "id": s.ID, "created_at": stamp(s.CreatedAt)},
	}
}

func judgeEnrollmentKey(c *registry.Credential, r countersign.AuditRules, now time.Time) *Finding {
	age := now.Sub(c.CreatedAt)
	if age < threshold(r.SecretAge, defaultSecretAge) {
		return nil
	}
	return &Finding{
		Reason: "ENROLLMENT_KEY_PAST_AGE_THRESHOLD", Subject: "credential:" + c.ID, Device: c.Device, Fleet: c.Fleet,
		Summary:  fmt.Sprintf("the enrollment %s %s of fleet %s is %s old", c.Kind, c.ID, c.Fleet, days(age)),
		Evidence: map[string]string{"kind": string(c.Kind), "id": c.ID, "created_at": stamp(c.CreatedAt)},
	}
}

// lookAtFleets looks at what each fleet accepts at the door.
func lookAtFleets(_ context.Context, w *work) error {
	for name, r := range w.fleets {
		w.looked(1, WeakAuthenticated)
		for _, f := range judgeFleet(name, r.Access) {
			w.report(WeakAuthenticated, f)
		}
	}
	return nil
}

func judgeFleet(name string, a countersign.Access) (list []Finding) {
	found := func(reason, what string) {
		list = append(list, Finding{
			Reason: reason, Subject: "fleet:" + name, Fleet: name, Summary: fmt.Sprintf("fleet %s %s", name, what), Evidence: map[string]string{},
		})
	}
	if a.Guests {
		found("FLEET_ADMITS_GUESTS", "admits clients without any credential")
	}
	if slices.Contains(a.Kinds, countersign.AccessPassword) {
		found("FLEET_ACCEPTS_PASSWORDS", "accepts passwords that people chose")
	}
	return list
}

// lookAtOperatorTokens looks at the tokens of those who administer.
func lookAtOperatorTokens(ctx context.Context, w *work) error {
	all := store.Pages(func(after string) ([]operator.Token, string, error) { return w.Operators.List(ctx, after, 0) })
	for t, err := range all {
		if err != nil {
			return err
		}
		if !t.Revoked && t.ExpiresAt.After(w.now) {
			w.looked(1, OperatorToken)
			w.found(OperatorToken, judgeToken(&t, w.now))
		}
	}
	return nil
}

func judgeToken(t *operator.Token, now time.Time) *Finding {
	f := &Finding{Subject: "operator_token:" + t.ID, Evidence: map[string]string{
		"name": t.Name, "role": string(t.Role), "created_at": stamp(t.CreatedAt), "expires_at": stamp(t.ExpiresAt),
	}}
	seen := t.CreatedAt
	if t.UsedAt.After(seen) {
		seen = t.UsedAt
		f.Evidence["used_at"] = stamp(t.UsedAt)
	}
	switch {
	case now.Sub(seen) > tokenUnused:
		f.Reason = "OPERATOR_TOKEN_UNUSED"
		f.Summary = fmt.Sprintf("the operator token %s with role %s was not used for %s", t.Name, t.Role, days(now.Sub(seen)))
	case t.Role == operator.Admin && t.ExpiresAt.Sub(t.CreatedAt) > tokenLife:
		f.Reason = "OPERATOR_TOKEN_LONG_LIVED"
		f.Summary = fmt.Sprintf("the operator token %s may do everything for %s", t.Name, days(t.ExpiresAt.Sub(t.CreatedAt)))
	default:
		return nil
	}
	return f
}
