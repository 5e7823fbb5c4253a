package access_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

func TestGuestsAreNobodyElse(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		guest := countersign.Connection{Gateway: "mqtt", ClientID: "pump-1", Username: "pumps", Remote: home}
		d.wantOut(t, "guests are off", guest, countersign.Unauthenticated)
		d.accept(t, countersign.Access{Guests: true})
		got := d.Decide(t.Context(), guest)
		if got.Code == countersign.Unauthenticated || !strings.HasPrefix(got.Device, "guest/") || got.Fleet != "pumps" || got.Credential != "guest" || !got.Ephemeral || got.Known || got.FirstUse {
			t.Errorf("got %+v, want a guest", got)
		}
		if !got.NotAfter.Equal(start.Add(time.Hour)) || countersign.CheckDeviceID(got.Device) == nil {
			t.Errorf("got %v as %q, want an hour under a name that no device can have", got.NotAfter, got.Device)
		}
		if again := d.Decide(t.Context(), guest); again.Device == got.Device {
			t.Error("two guests of one name")
		}
		for _, name := range []string{"", "pump-1", "nofleet", "guest/x", strings.Repeat("x", 70)} {
			c := guest
			c.Username = name
			d.wantOut(t, fmt.Sprintf("user name %q", name), c, countersign.Unauthenticated)
		}
		// A client with a wrong secret does not become a guest.
		d.wantOut(t, "with a password", countersign.Connection{Username: "pumps", Password: []byte("x"), Remote: home}, countersign.BadCredential)
	})
}

// TestGuestsComeAsNoDeviceAtABroker checks that a guest cannot use a device's client
// identifier at a foreign broker, where all clients share one name space.
func TestGuestsComeAsNoDeviceAtABroker(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		d.accept(t, countersign.Access{Guests: true})
		for client, device := range map[string]bool{
			"pump-1": true, "pump-1/a": true, "pump-1:a": true, "pump-1:a:b/c": true,
			"": false, "visitor": false, "pump-12": false, "visitor:pump-1": false, "/pump-1": false, strings.Repeat("x:", 100): false,
		} {
			got := d.Decide(t.Context(), countersign.Connection{Gateway: "hook:emqx", ClientID: client, Username: "pumps", Remote: home})
			if (got.Code == countersign.SubjectMismatch) != device {
				t.Errorf("client id %.20q: got %s %s, want a device's: %t", client, got.Code, got.Reason, device)
			}
		}
	})
}

func TestGuestsAreBounded(t *testing.T) {
	d := newDoor(t, storetest.Open(t))
	d.accept(t, countersign.Access{Guests: true})
	c := countersign.Connection{Username: "pumps", Remote: home}
	var names []string
	for i := range access.MaxGuests {
		c.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 5)}), 1)
		got := d.Decide(t.Context(), c)
		if got.Device == "" {
			t.Fatalf("guest %d: got %+v", i, got)
		}
		names = append(names, got.Device)
		d.Opened(countersign.Session{Device: got.Device, Fleet: "pumps", Credential: "guest", NotAfter: got.NotAfter})
	}
	d.turn(time.Minute)
	c.Remote = home
	d.wantOut(t, "one more", c, countersign.RateLimited)
	d.Closed(countersign.Session{Device: names[0], Fleet: "pumps", Credential: "guest"})
	if got := d.Decide(t.Context(), c); got.Device == "" {
		t.Errorf("after one left: got %+v", got)
	}
	d.wantOut(t, "and one more", c, countersign.RateLimited)
	d.turn(time.Minute) // the place of a guest that was admitted and never connected is free again
	if got := d.Decide(t.Context(), c); got.Device == "" {
		t.Errorf("after one did not come: got %+v", got)
	}
}

// TestOneAddressTakesNotAllPlacesOfGuests checks the limit of an address, which is one
// IPv4 address or one IPv6 /64.
func TestOneAddressTakesNotAllPlacesOfGuests(t *testing.T) {
	for name, address := range map[string]func(i int) netip.Addr{
		"IPv4": func(int) netip.Addr { return netip.MustParseAddr("192.0.2.1") },
		"mapped and translated": func(i int) netip.Addr {
			return netip.MustParseAddr([]string{"192.0.2.1", "::ffff:192.0.2.1", "64:ff9b::192.0.2.1"}[i%3])
		},
		"IPv6": func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoor(t, storetest.Open(t))
			d.accept(t, countersign.Access{Guests: true})
			c := countersign.Connection{Username: "pumps"}
			in := 0
			for i := range access.MaxGuests/4 + 10 {
				c.Remote = netip.AddrPortFrom(address(i), 1)
				if got := d.Decide(t.Context(), c); got.Device != "" {
					in++
				}
			}
			if in != access.MaxGuests/4 {
				t.Errorf("one address has %d guests, want a quarter of %d", in, access.MaxGuests)
			}
			c.Remote = home
			if got := d.Decide(t.Context(), c); got.Device == "" {
				t.Errorf("another address: got %+v", got)
			}
			c.Remote = netip.MustParseAddrPort("[64:ff9b::192.0.2.9]:1") // all of IPv4 is in this /64
			if got := d.Decide(t.Context(), c); got.Device == "" {
				t.Errorf("another address behind a translator: got %+v", got)
			}
		})
	}
}
