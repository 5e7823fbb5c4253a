package registry_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// token makes one that is good for an hour.
func (h *house) token(t failer, token registry.Credential) (made registry.Credential, secret string) {
	t.Helper()
	h.write(t, func(ctx context.Context, tx *store.Tx) (err error) {
		made, secret, err = h.CreateToken(ctx, tx, token, time.Hour)
		return err
	})
	return made, secret
}

func (h *house) spend(t failer, token registry.Credential) error {
	return h.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Spend(ctx, tx, token) })
}

func TestTokenIsFoundBySecretOnly(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		made, secret := h.token(t, registry.Credential{Fleet: "default", Device: "pump-1", UsesMax: 3, CreatedBy: countersign.OperatorActor("ann")})
		if !strings.HasPrefix(secret, countersign.TokenPrefix) || len(secret) != len(countersign.TokenPrefix)+43 {
			t.Errorf("secret: got %d characters, want %s and 256 bits in base64", len(secret), countersign.TokenPrefix)
		}
		got, err := h.TokenBySecret(t.Context(), db, secret)
		want := registry.Credential{
			ID: made.ID, Kind: countersign.MethodToken, State: registry.CredentialActive, Fleet: "default", Device: "pump-1", UsesMax: 3, CreatedBy: "operator:ann", CreatedAt: start, ExpiresAt: start.Add(time.Hour),
		}
		if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(registry.Credential{})); err != nil || d != "" {
			t.Errorf("TokenBySecret (-want +got): %v\n%s", err, d)
		}
		for _, wrong := range []string{"", made.ID, secret[:len(secret)-1], secret + "A", strings.ToUpper(secret), strings.Repeat("x", 1<<20), "\x00\xff"} {
			if _, err := h.TokenBySecret(t.Context(), db, wrong); countersign.CodeOf(err) != countersign.BadCredential {
				t.Errorf("secret %.20q: got %v, want bad_credential", wrong, err)
			}
		}
	})
}

// TestTokenSecretIsKeptNowhere looks through every column of every row.
func TestTokenSecretIsKeptNowhere(t *testing.T) {
	h := open(t, storetest.Open(t))
	_, secret := h.token(t, registry.Credential{Fleet: "default", UsesMax: 1})
	rows, err := h.DB.Query(t.Context(), `SELECT * FROM credential`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for rows.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			text := fmt.Sprintf("%s", *v.(*any))
			if strings.Contains(text, secret) || strings.Contains(text, strings.TrimPrefix(secret, countersign.TokenPrefix)) {
				t.Errorf("column %s holds the secret", columns[i])
			}
			seen++
		}
	}
	if err := rows.Err(); err != nil || seen == 0 {
		t.Errorf("looked at %d values, %v", seen, err)
	}
}

func TestCreateTokenIsBounded(t *testing.T) {
	h := open(t, storetest.Open(t))
	for _, tt := range []struct {
		name  string
		token registry.Credential
		ttl   time.Duration
		want  countersign.Code
	}{
		{"least", registry.Credential{Fleet: "default", UsesMax: 1}, time.Second, ""},
		{"most", registry.Credential{Fleet: "default", UsesMax: registry.MaxUses}, registry.MaxTTL, ""},
		{"no use", registry.Credential{Fleet: "default"}, time.Hour, countersign.BadRequest},
		{"too many uses", registry.Credential{Fleet: "default", UsesMax: registry.MaxUses + 1}, time.Hour, countersign.BadRequest},
		{"no time", registry.Credential{Fleet: "default", UsesMax: 1}, 0, countersign.BadRequest},
		{"too long", registry.Credential{Fleet: "default", UsesMax: 1}, registry.MaxTTL + 1, countersign.BadRequest},
		{"bad device", registry.Credential{Fleet: "default", UsesMax: 1, Device: "a b"}, time.Hour, countersign.BadRequest},
		{"no fleet", registry.Credential{UsesMax: 1}, time.Hour, countersign.NotFound},
	} {
		err := h.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, _, err := h.CreateToken(ctx, tx, tt.token, tt.ttl)
			return err
		})
		if countersign.CodeOf(err) != tt.want {
			t.Errorf("%s: got %v, want code %q", tt.name, err, tt.want)
		}
	}
}

func TestTokenEnds(t *testing.T) {
	h := open(t, storetest.Open(t))
	token, secret := h.token(t, registry.Credential{Fleet: "default", UsesMax: 2})
	for _, tt := range []struct {
		at   time.Duration
		want countersign.Code
	}{{0, ""}, {time.Hour, ""}, {time.Hour + time.Microsecond, countersign.CredentialExpire}} {
		if err := token.Usable(start.Add(tt.at), netip.Addr{}); countersign.CodeOf(err) != tt.want {
			t.Errorf("after %v: got %v, want code %q", tt.at, err, tt.want)
		}
	}
	for range 2 {
		if err := h.spend(t, token); err != nil {
			t.Fatal(err)
		}
	}
	kit.WantCode(t, h.spend(t, token), countersign.CredentialSpent)
	token, err := h.TokenBySecret(t.Context(), h.DB, secret)
	if err != nil || token.Uses != 2 {
		t.Fatalf("got %d uses, %v, want 2", token.Uses, err)
	}
	kit.WantCode(t, token.Usable(start, netip.Addr{}), countersign.CredentialSpent)
}

// TestLastUseIsWonOnce races for the last use of a token.
func TestLastUseIsWonOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		for range 10 {
			token, _ := h.token(t, registry.Credential{Fleet: "default", UsesMax: 3})
			const at = 12
			errs := make(chan error, at)
			for range at {
				go func() { errs <- h.spend(t, token) }()
			}
			won := 0
			for range at {
				if err := <-errs; err == nil {
					won++
				} else if countersign.CodeOf(err) != countersign.CredentialSpent {
					t.Errorf("Spend: got %v, want credential_spent", err)
				}
			}
			if won != 3 {
				t.Fatalf("a token of 3 uses was spent %d times", won)
			}
		}
	})
}

// TestSpendIsUndoneWithItsTransaction wants a refused enrollment to cost no use.
func TestSpendIsUndoneWithItsTransaction(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		token, _ := h.token(t, registry.Credential{Fleet: "default", UsesMax: 1})
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := h.Spend(ctx, tx, token); err != nil {
				return err
			}
			return countersign.Errorf(countersign.NotAllowed, "refused after all")
		})
		kit.WantCode(t, err, countersign.NotAllowed)
		if err := h.spend(t, token); err != nil {
			t.Errorf("the use is gone: %v", err)
		}
	})
}

func TestTokensNewestFirst(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		made := map[string]bool{}
		for i := range 7 {
			h.now = start.Add(time.Duration(i/2) * time.Second) // pairs of the same time
			token, _ := h.token(t, registry.Credential{Fleet: "default", UsesMax: 1})
			made[token.ID] = true
		}
		for _, limit := range []int{1, 2, 7, 0} {
			got := map[string]bool{}
			last := start.Add(time.Hour)
			for after := ""; ; {
				page, next, err := h.Credentials(t.Context(), registry.CredentialFilter{Kind: countersign.MethodToken, After: after, Limit: limit})
				if err != nil {
					t.Fatal(err)
				}
				for _, token := range page {
					if token.CreatedAt.After(last) {
						t.Errorf("limit %d: %v comes after %v", limit, token.CreatedAt, last)
					}
					last = token.CreatedAt
					got[token.ID] = true
				}
				if next == "" {
					break
				}
				after = next
			}
			if d := cmp.Diff(made, got, cmpopts.IgnoreUnexported(registry.Credential{})); d != "" {
				t.Errorf("limit %d (-want +got):\n%s", limit, d)
			}
		}
	})
}

func TestStoppedCredentialMayBeFollowed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		create := func() (c registry.Credential, err error) {
			err = db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
				c, err = h.CreateCredential(ctx, tx, registry.Credential{Kind: countersign.MethodKey, Fleet: "default", Device: "pump-1"}, registry.Lookup{First: "default/pump-1"})
				return err
			})
			return c, err
		}
		first, err := create()
		if err != nil {
			t.Fatal(err)
		}
		_, err = create()
		kit.WantCode(t, err, countersign.Conflict)
		stop := func() error {
			return db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := h.Stop(ctx, tx, first.ID, "leaked")
				return err
			})
		}
		errs := make(chan error, 4)
		for range cap(errs) {
			go func() { errs <- stop() }()
		}
		won := 0
		for range cap(errs) {
			if err := <-errs; err == nil {
				won++
			} else {
				kit.WantCode(t, err, countersign.Conflict)
			}
		}
		if won != 1 {
			t.Errorf("%d stopped it, want 1", won)
		}
		kit.WantCode(t, h.spend(t, first), countersign.CredentialSpent)
		found, err := h.Find(t.Context(), db, countersign.MethodKey, "default/pump-1")
		if err != nil || found.State != registry.CredentialStopped || found.Reason != "leaked" {
			t.Errorf("Find: got %+v, %v, want the stopped one", found, err)
		}
		second, err := create()
		if err != nil {
			t.Fatalf("after the first was stopped: %v", err)
		}
		if found, err = h.Find(t.Context(), db, countersign.MethodKey, "default/pump-1"); err != nil || found.ID != second.ID {
			t.Errorf("Find: got %s, %v, want %s", found.ID, err, second.ID)
		}
	})
}

func TestDevicePatterns(t *testing.T) {
	h := open(t, storetest.Open(t))
	for _, bad := range []string{"", "a b", "[a-z]", `a\*`, "a/b", "pump-9..pump-1", "pump-1..pump-10", "pump-1..valve-2", "pump..pumq", "..", strings.Repeat("x", 129)} {
		err := h.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, _, err := h.CreateToken(ctx, tx, registry.Credential{Fleet: "default", UsesMax: 1, Devices: []string{bad}}, time.Hour)
			return err
		})
		if countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("pattern %.20q: got %v, want bad_request", bad, err)
		}
	}
	for _, tt := range []struct {
		pattern, device string
		want            bool
	}{
		{"*", "anything", true},
		{"pump-*", "pump-", true},
		{"pump-*", "xpump-1", false},
		{"p?mp", "pump", true},
		{"p?mp", "puump", false},
		{"a1..a3", "a1", true},
		{"a1..a3", "a3", true},
		{"a1..a3", "a4", false},
		{"a1..a3", "a02", false},
		{"a1..a3", "a", false},
		{"a01..a30", "a1x", false},
	} {
		c := registry.Credential{Devices: []string{tt.pattern}}
		if got := c.Covers(tt.device); got != tt.want {
			t.Errorf("%s covers %s: got %v", tt.pattern, tt.device, got)
		}
	}
	for _, label := range []string{"a\x00b", "\xff"} {
		err := h.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, _, err := h.CreateToken(ctx, tx, registry.Credential{Fleet: "default", UsesMax: 1, Label: label}, time.Hour)
			return err
		})
		if countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("label %q: got %v, want bad_request", label, err)
		}
	}
}
