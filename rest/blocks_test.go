package rest_test

import (
	"net/netip"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/lockout"
)

func TestBlocksAreSeenMadeAndLifted(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	for range 10 {
		h.RA.Ledger.Count(t.Context(), lockout.Failure{Addr: netip.MustParseAddr("198.51.100.1"), Door: "est", Code: countersign.BadCredential})
	}
	var made api.Block
	c.must("POST", "/blocks", `{"network":"2001:db8::7/48","reason":"odd","ttl_seconds":3600}`, &made)
	if made.Network != "2001:db8::/48" || !made.Manual || made.Until.Sub(made.Since).Seconds() < 3599 {
		t.Errorf("POST: got %+v", made)
	}
	var list api.Page[api.Block]
	c.must("GET", "/blocks", "", &list)
	if len(list.Items) != 2 || list.Items[0].Network != "198.51.100.1/32" || list.Items[0].Failures != 10 || list.Items[0].Manual {
		t.Errorf("GET: got %+v, want both", list.Items)
	}
	c.must("GET", "/blocks?limit=1", "", &list)
	if len(list.Items) != 1 || list.Next != "198.51.100.1/32" {
		t.Errorf("GET of one: got %+v", list)
	}
	for _, path := range []string{"/blocks/198.51.100.1", "/blocks/2001:db8::_48"} {
		c.must("DELETE", path, "", nil)
		var p api.Problem
		if c.do("DELETE", path, "", &p); p.Code != "not_found" || p.Next == "" {
			t.Errorf("DELETE %s again: got %+v, want not_found", path, p)
		}
	}
	c.must("POST", "/blocks", `{"network":"192.0.2.0/24","ttl_seconds":60}`, nil)
	c.must("DELETE", "/blocks/192.0.2.0%2F24", "", nil)
	for _, body := range []string{`{"network":"pump","ttl_seconds":60}`, `{"network":"0.0.0.0/0","ttl_seconds":60}`} {
		var p api.Problem
		if c.do("POST", "/blocks", body, &p); p.Code != "bad_request" {
			t.Errorf("POST %s: got %+v, want bad_request", body, p)
		}
	}
	var p api.Problem
	if c.do("DELETE", "/blocks/pump", "", &p); p.Code != "bad_request" {
		t.Errorf("DELETE pump: got %+v, want bad_request", p)
	}
	var events api.Page[api.Event]
	c.must("GET", "/events?type=address.blocked", "", &events)
	if len(events.Items) != 3 || events.Items[0].Severity != "alert" || events.Items[0].Data["network"] != "198.51.100.1/32" {
		t.Errorf("events: got %+v, want three alerts", events.Items)
	}
}
