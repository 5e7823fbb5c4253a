package operator_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/google/go-cmp/cmp"
)

// desk is the accounts on db whose clock the test moves.
type desk struct {
	*operator.Accounts
	now time.Time
}

func newDesk(db *store.DB) *desk {
	d := &desk{now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	d.Accounts = &operator.Accounts{DB: db, Now: func() time.Time { return d.now }}
	return d
}

// create makes a token that is good for an hour.
func (d *desk) create(t *testing.T, name string, role operator.Role) (operator.Token, string) {
	t.Helper()
	var tok operator.Token
	var secret string
	err := d.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
		tok, secret, err = d.Create(ctx, tx, name, role, time.Hour)
		return err
	})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return tok, secret
}

func TestAuthenticateKnowsItsTokens(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDesk(db)
		want, secret := d.create(t, "ana", operator.Operator)
		d.create(t, "ben", operator.Viewer)
		got, err := d.Authenticate(t.Context(), secret)
		if err != nil {
			t.Fatalf("Authenticate: %v", err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Authenticate (-created +found):\n%s", diff)
		}
		if !strings.HasPrefix(secret, operator.TokenPrefix) {
			t.Errorf("secret %q: want prefix %s", secret, operator.TokenPrefix)
		}
	})
}

func TestAuthenticateRefusesAllElse(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDesk(db)
		tok, secret := d.create(t, "ana", operator.Admin)
		gone, goneSecret := d.create(t, "ben", operator.Admin)
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := d.Revoke(ctx, tx, gone.ID)
			return err
		})
		if err != nil {
			t.Fatalf("Revoke: %v", err)
		}
		last := secret[len(secret)-1:]
		flipped := secret[:len(secret)-1] + map[bool]string{true: "b", false: "a"}[last == "a"]
		for name, c := range map[string]struct {
			secret string
			want   countersign.Code
		}{
			"none":             {"", countersign.Unauthenticated},
			"garbage":          {"hello", countersign.BadCredential},
			"one bit off":      {flipped, countersign.BadCredential},
			"known id only":    {operator.TokenPrefix + tok.ID + strings.Repeat("a", 52), countersign.BadCredential},
			"unknown id":       {operator.TokenPrefix + strings.Repeat("a", 68), countersign.BadCredential},
			"revoked":          {goneSecret, countersign.BadCredential},
			"enrollment token": {countersign.TokenPrefix + secret[5:], countersign.BadCredential},
			"longer":           {secret + "a", countersign.BadCredential},
		} {
			if got, err := d.Authenticate(t.Context(), c.secret); countersign.CodeOf(err) != c.want || got != (operator.Token{}) {
				t.Errorf("%s: got %v, %v, want code %s", name, got, err, c.want)
			}
		}
		d.now = d.now.Add(time.Hour)
		if _, err := d.Authenticate(t.Context(), secret); countersign.CodeOf(err) != countersign.CredentialExpire {
			t.Errorf("at its expiry: got %v, want code %s", err, countersign.CredentialExpire)
		}
	})
}

func TestAuthenticateNotesLastUse(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDesk(db)
		_, secret := d.create(t, "ana", operator.Viewer)
		first := d.now
		for _, c := range []struct{ later, want time.Duration }{{0, 0}, {30 * time.Second, 0}, {2 * time.Minute, 2 * time.Minute}} {
			d.now = first.Add(c.later)
			if _, err := d.Authenticate(t.Context(), secret); err != nil {
				t.Fatalf("Authenticate: %v", err)
			}
			list, _, err := d.List(t.Context(), "", 10)
			if err != nil {
				t.Fatalf("List: %v", err)
			}
			if got := list[0].UsedAt; !got.Equal(first.Add(c.want)) {
				t.Errorf("after %s: got last use %s, want %s", c.later, got, first.Add(c.want))
			}
		}
	})
}

func TestSecretIsNotOnRecord(t *testing.T) {
	db := storetest.Open(t)
	_, secret := newDesk(db).create(t, "ana", operator.Viewer)
	var row string
	err := db.QueryRow(t.Context(), `SELECT id || name || role || hex(hash) FROM operator_token`).Scan(&row)
	if err != nil {
		t.Fatal(err)
	}
	random := secret[len(secret)-52:]
	if strings.Contains(row, random) || strings.Contains(row, strings.ToUpper(fmt.Sprintf("%x", random))) {
		t.Errorf("the row holds the secret: %s", row)
	}
}

func TestCreateRefuses(t *testing.T) {
	db := storetest.Open(t)
	d := newDesk(db)
	for name, c := range map[string]struct {
		name string
		role operator.Role
		ttl  time.Duration
	}{
		"no name":   {"", operator.Viewer, time.Hour},
		"odd name":  {"a b", operator.Viewer, time.Hour},
		"no role":   {"ana", "", time.Hour},
		"odd role":  {"ana", "king", time.Hour},
		"no life":   {"ana", operator.Viewer, 0},
		"long life": {"ana", operator.Viewer, 366 * 24 * time.Hour},
	} {
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, _, err := d.Create(ctx, tx, c.name, c.role, c.ttl)
			return err
		})
		if countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("%s: got %v, want code %s", name, err, countersign.BadRequest)
		}
	}
}

func TestListPages(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDesk(db)
		want := map[string]bool{}
		for range 5 {
			tok, _ := d.create(t, "ana", operator.Viewer)
			want[tok.ID] = true
		}
		got := map[string]bool{}
		pages, after := 0, ""
		for {
			list, next, err := d.List(t.Context(), after, 2)
			if err != nil {
				t.Fatalf("List: %v", err)
			}
			pages++
			for _, tok := range list {
				got[tok.ID] = true
			}
			if next == "" {
				break
			}
			after = next
		}
		if diff := cmp.Diff(want, got); diff != "" || pages != 3 {
			t.Errorf("List: %d pages, want 3; ids (-want +got):\n%s", pages, diff)
		}
	})
}

func TestRevokeRefusesUnknown(t *testing.T) {
	d := newDesk(storetest.Open(t))
	err := d.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := d.Revoke(ctx, tx, "nope")
		return err
	})
	if countersign.CodeOf(err) != countersign.NotFound {
		t.Errorf("Revoke of an unknown token: got %v, want code %s", err, countersign.NotFound)
	}
}

func TestRolesMayDoTheirPart(t *testing.T) {
	acts := []operator.Act{
		operator.Anyone, operator.Read, operator.ReadLog, operator.Register, operator.Vouch, operator.Suspend,
		operator.Revoke, operator.Approve, operator.Configure, operator.Operators,
	}
	want := map[operator.Role]string{
		"":                "anyone",
		operator.Viewer:   "anyone read",
		operator.Auditor:  "anyone read read_log",
		operator.Factory:  "anyone register vouch",
		operator.Approver: "anyone read read_log suspend approve",
		operator.Operator: "anyone read read_log register suspend revoke",
		operator.Admin:    "anyone read read_log register vouch suspend revoke approve configure operators",
	}
	for role, allowed := range want {
		var got []string
		for _, a := range acts {
			if role.May(a) {
				got = append(got, string(a))
			}
		}
		if strings.Join(got, " ") != allowed {
			t.Errorf("role %q may %s, want %s", role, strings.Join(got, " "), allowed)
		}
	}
}
