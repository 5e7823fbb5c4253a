package detect

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

// known lets a device connect n times in its usual way.
func known(s *story, v visit, n int) {
	for range n {
		o := s.open(v)
		s.pass(time.Hour)
		s.end(o, "client_left")
	}
}

func TestAnotherClientFromAnotherNetworkIsFound(t *testing.T) {
	for name, thief := range map[string]visit{
		"fingerprint":    {addr: "198.51.100.7", hello: "go", software: "fw 1"},
		"software":       {addr: "198.51.100.7", hello: "mbed", software: "paho"},
		"protocol":       {addr: "198.51.100.7", hello: "mbed", software: "fw 1", protocol: "MQTT 3.1.1"},
		"address family": {addr: "2001:db8::1", hello: "go", software: "fw 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			known(s, visit{device: "pump-1", addr: "192.0.2.1", hello: "mbed", software: "fw 1"}, 3)
			s.silent()
			thief.device = "pump-1"
			for range 5 {
				s.open(thief)
				s.pass(time.Minute)
			}
			f := s.once(IdentityChange)
			s.has(f, map[string]string{"network_before": "192.0.0.0/16", "hello_before": "mbed", "software_before": "fw 1", "sessions_before": "3"})
			if f.Subject != "device:pump-1" || f.Cert.IsZero() {
				t.Errorf("got %+v", f)
			}
		})
	}
}

func TestHonestChangesAreNoFinding(t *testing.T) {
	usual := visit{device: "pump-1", addr: "192.0.2.1", hello: "mbed", software: "fw 1"}
	for name, tale := range map[string]func(s *story){
		"new firmware": func(s *story) {
			known(s, visit{device: "pump-1", addr: "192.0.2.1", hello: "mbed 3", software: "fw 2"}, 3)
		},
		"a new router": func(s *story) {
			known(s, visit{device: "pump-1", addr: "198.51.100.7", hello: "mbed", software: "fw 1"}, 3)
		},
		"first one, then the other": func(s *story) {
			known(s, visit{device: "pump-1", addr: "192.0.2.1", hello: "mbed 3", software: "fw 2"}, 1)
			known(s, visit{device: "pump-1", addr: "198.51.100.7", hello: "mbed 3", software: "fw 2"}, 1)
			known(s, usual, 1) // rolled back, moved back
		},
		"a rollout that others have": func(s *story) {
			for i := range common {
				known(s, visit{device: fmt.Sprint("other-", i), addr: "203.0.113.1", hello: "mbed 3", software: "fw 2"}, 1)
			}
			known(s, visit{device: "pump-1", addr: "198.51.100.7", hello: "mbed 3", software: "fw 2"}, 1)
		},
		"new firmware on a carrier's other network": func(s *story) {
			known(s, visit{device: "other", addr: "192.0.2.9"}, 1)
			known(s, visit{device: "other", addr: "198.51.100.9"}, 1)
			s.pass(24 * time.Hour)
			known(s, visit{device: "pump-1", addr: "198.51.100.7", hello: "mbed 3", software: "fw 2"}, 1)
		},
		"a new first certificate": func(s *story) {
			s.event(countersign.Event{Type: countersign.CertIssued, Device: "pump-1"})
			known(s, visit{device: "pump-1", addr: "198.51.100.7", hello: "go", software: "fw 9"}, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			known(s, usual, 5)
			tale(s)
			s.silent()
		})
	}
	s := tell(t) // too few sessions
	known(s, usual, 2)
	known(s, visit{device: "pump-1", addr: "198.51.100.7", hello: "go"}, 1)
	s.silent()
}

func TestRenewalInheritsWhatIsKnown(t *testing.T) {
	s := tell(t)
	known(s, visit{device: "pump-1", addr: "192.0.2.1", hello: "mbed", cert: "0a"}, 3)
	s.event(countersign.Event{Type: countersign.CertIssued, Device: "pump-1", Data: map[string]string{"predecessor": "0a"}})
	s.open(visit{device: "pump-1", addr: "198.51.100.7", hello: "go", cert: "0b"})
	s.once(IdentityChange)
}

func TestDevicesThatGatherAtANewAddressAreFound(t *testing.T) {
	at := func(s *story, i int, addr string) {
		known(s, visit{device: fmt.Sprint("pump-", i), addr: addr}, 1)
	}
	s := tell(t)
	for i := range 15 {
		at(s, i, fmt.Sprintf("10.%d.2.1", i))
	}
	for i := range 15 { // stolen, each from its own place
		o := s.open(visit{device: fmt.Sprint("pump-", i), addr: "203.0.113.9"})
		s.pass(time.Minute)
		s.end(o, "client_left")
	}
	f := s.once(NewAddressCrowd)
	if f.Subject != "address:203.0.113.9/32" || len(f.Events) != 10 {
		t.Errorf("got %+v", f)
	}
	s.has(f, map[string]string{"devices": "pump-0, pump-1", "networks_before": "10.0.0.0/16"})

	s = tell(t) // a site of 200 gets another address
	for i := range 200 {
		at(s, i, "192.0.2.1")
	}
	for i := range 200 {
		s.open(visit{device: fmt.Sprint("pump-", i), addr: "203.0.113.9"})
	}
	s.silent()

	s = tell(t) // new devices, at a plant
	for i := range 200 {
		s.open(visit{device: fmt.Sprint("pump-", i), addr: "203.0.113.9"})
	}
	s.silent()

	s = tell(t) // an address that is known: the service hall
	at(s, 99, "203.0.113.9")
	s.pass(24 * time.Hour)
	for i := range 20 {
		at(s, i, fmt.Sprintf("10.%d.2.1", i))
		s.open(visit{device: fmt.Sprint("pump-", i), addr: "203.0.113.9"})
	}
	s.silent()
}

// TestCarrierIsNoCrowd lets thousands of phones share the addresses of a carrier that has
// forty networks, and gets new ones.
func TestCarrierIsNoCrowd(t *testing.T) {
	s := tell(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 60_000 {
		pool := int(s.now.Sub(start) / (7 * time.Hour)) // a new part of the pools every seven hours
		addr := fmt.Sprintf("%d.%d.%d.1", 100, 64+r.IntN(40), 100+r.IntN(2)+2*pool)
		s.open(visit{device: fmt.Sprint("phone-", r.IntN(3000)), addr: addr, client: "x"})
		s.pass(time.Second)
	}
	for _, f := range s.found {
		if f.Rule == NewAddressCrowd {
			t.Errorf("%s about %s: %v", f.At, f.Subject, f.Evidence)
		}
	}
}
