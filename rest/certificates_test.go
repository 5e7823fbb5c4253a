package rest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store"
)

// TestSerialOfTwoIssuersWantsTheIssuer has a second issuer that gave the serial number of
// a device's certificate to another one.
func TestSerialOfTwoIssuersWantsTheIssuer(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	serial := string(h.enroll(t, "pump-7").Serial)
	err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, anchor, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
				key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
			SELECT serial, 'maker/00112233aabbccdd', 'maker', 'pump-8', fleet, 'external', 'active', '', 0, FALSE, '', evidence, method,
				key_hash, fingerprint, not_before, not_after, issued_at, used_at, 0, 0, 0, der FROM certificate WHERE serial = $1`, serial)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var p api.Problem
	if res := c.do("GET", "/certificates/"+serial, "", &p); res.StatusCode != 409 {
		t.Fatalf("without an issuer: got %s, want 409", res.Status)
	}
	for _, candidate := range []string{"issuing (pump-7)", "maker/00112233aabbccdd (pump-8)"} {
		if !strings.Contains(p.Detail, candidate) {
			t.Errorf("the answer %q does not name %s", p.Detail, candidate)
		}
	}
	for issuer, device := range map[string]string{"issuing": "pump-7", "maker%2F00112233aabbccdd": "pump-8"} {
		var cert api.Certificate
		if c.must("GET", "/certificates/"+serial+"?issuer="+issuer, "", &cert); cert.Device != device {
			t.Errorf("issuer %s: got the certificate of %s, want that of %s", issuer, cert.Device, device)
		}
	}
	var page api.Page[api.Certificate]
	seen := map[string]bool{}
	for after := ""; ; after = page.Next {
		page = api.Page[api.Certificate]{}
		c.must("GET", "/certificates?limit=1&after="+after, "", &page)
		for _, cert := range page.Items {
			seen[cert.Issuer+"/"+cert.Serial] = true
		}
		if page.Next == "" {
			break
		}
	}
	if !seen["issuing/"+serial] || !seen["maker/00112233aabbccdd/"+serial] {
		t.Errorf("pages of one certificate leave one out: got %v", seen)
	}
}
