package detect

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	clientLeft = string(countersign.EndClientLeft)
	lost       = string(countersign.EndLost)
)

var (
	device = visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/a", hello: "mbed"}
	thief  = visit{device: "pump-1", addr: "198.51.100.7", client: "pump-1/x", hello: "go"}
)

// as returns a visit under another client id.
func (v visit) as(client any) visit {
	v.client = fmt.Sprint(v.device, "/", client)
	return v
}

// for plays a visit of some length.
func (s *story) stay(v visit, d time.Duration, why string) {
	v = s.open(v)
	s.pass(d)
	s.end(v, why)
}

// TestHoldersCannotHide lets a thief share a device's certificate in ways that an earlier
// detector did not find.
func TestHoldersCannotHide(t *testing.T) {
	for name, tale := range map[string]func(s *story){
		"many sessions push the device's one out": func(s *story) {
			s.open(device)
			for i := range 100 {
				s.open(thief.as(i))
			}
		},
		"many fingerprints at one address": func(s *story) {
			s.open(device)
			for i := range 100 {
				v := thief.as(i)
				v.hello = fmt.Sprint("random ", i)
				s.open(v)
			}
		},
		"many addresses": func(s *story) {
			s.open(device)
			for i := range 100 {
				v := thief.as(i)
				v.addr, v.hello = fmt.Sprintf("198.51.%d.7", i), fmt.Sprint("random ", i)
				s.stay(v, time.Second, clientLeft)
			}
		},
		"the thief was there first, with many sessions": func(s *story) {
			for i := range 100 {
				s.open(thief.as(i))
			}
			s.pass(time.Hour)
			s.open(device)
		},
		"sessions shorter than the overlap": func(s *story) {
			s.open(device)
			for i := range 20 {
				s.stay(thief.as(i), time.Minute, clientLeft)
				s.pass(10 * time.Minute)
			}
		},
		"sessions that break off": func(s *story) {
			s.open(device)
			for i := range 20 {
				s.stay(thief.as(i), time.Minute, lost)
				s.pass(10 * time.Minute)
			}
		},
		"the device's sessions are short": func(s *story) {
			s.open(thief)
			for i := range 20 {
				s.stay(device.as(i), time.Minute, clientLeft)
				s.pass(10 * time.Minute)
			}
		},
		"both are short and overlap": func(s *story) {
			a := s.open(device.as(0))
			for i := range 10 {
				s.pass(time.Minute)
				b := s.open(thief.as(i))
				s.pass(time.Minute)
				s.end(a, clientLeft)
				s.pass(time.Minute)
				a = s.open(device.as(i))
				s.pass(time.Minute)
				s.end(b, clientLeft)
			}
		},
		"both take turns": func(s *story) {
			for i := range 4 {
				s.stay(device.as(i), 10*time.Second, clientLeft)
				s.pass(5 * time.Minute)
				s.stay(thief.as(i), 10*time.Second, clientLeft)
				s.pass(5 * time.Minute)
			}
		},
		"both take turns, one of them from everywhere": func(s *story) {
			for i := range 20 {
				s.stay(device.as(i), time.Second, lost)
				for j := range 3 {
					v := thief.as(i)
					v.addr = fmt.Sprintf("198.51.%d.%d", i, j)
					s.stay(v, time.Second, lost)
				}
			}
		},
		"one long session among those that are counted": func(s *story) {
			var junk []visit
			for i := range maxSessions {
				junk = append(junk, s.open(thief.as(i)))
			}
			s.open(thief.as("long"))
			for _, v := range junk {
				s.end(v, clientLeft)
			}
			for i := range 3 {
				s.pass(10 * time.Minute)
				s.stay(device.as(i), time.Second, lost)
			}
		},
		"among many other devices that do the same": func(s *story) {
			for i := range 3000 { // once all shared one list of 10,000
				for j := range 6 {
					s.open(visit{device: fmt.Sprint("bad-", i), addr: fmt.Sprintf("203.0.113.%d", j), client: fmt.Sprint("bad/", j)})
				}
			}
			s.open(device)
			s.open(thief)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			tale(s)
			s.pass(overlapFor)
			s.event(countersign.Event{Type: countersign.CRLPublished})
			for _, f := range s.found {
				if f.Rule == SharedCertificate && f.Device == "pump-1" {
					if f.Severity.Rank() < countersign.SeverityHigh.Rank() || f.Evidence["address_1"] == f.Evidence["address_2"] || f.Cert.IsZero() {
						t.Errorf("got %+v", f)
					}
					return
				}
			}
			t.Errorf("got findings %s, want %s of pump-1", ruleNames(s.found), SharedCertificate)
		})
	}
}

// TestThievesThatReturnAreFoundAgain lets a thief return after a week, while the device's
// session never ended.
func TestThievesThatReturnAreFoundAgain(t *testing.T) {
	s := tell(t)
	s.open(device)
	for i := range 3 {
		s.stay(thief.as(i), time.Minute, clientLeft)
		s.pass(2 * 24 * time.Hour)
		s.event(countersign.Event{Type: countersign.CRLPublished})
	}
	n := len(slices.DeleteFunc(slices.Clone(s.found), func(f countersign.Finding) bool { return f.Rule != SharedCertificate }))
	if n != 3 {
		t.Errorf("got %d findings, want one for each time", n)
	}
}

// TestHonestHandoversAreNoSharing covers devices that move, or that run two programs.
func TestHonestHandoversAreNoSharing(t *testing.T) {
	for name, tale := range map[string]func(s *story){
		"opens the new session before it ends the old one": func(s *story) {
			at := []string{"192.0.2.1", "198.51.100.7"}
			old := s.open(device.as(0))
			for i := 1; i < 50; i++ {
				s.pass(20 * time.Minute)
				v := device.as(i)
				v.addr = at[i%2]
				v = s.open(v)
				s.pass(5 * time.Second)
				s.end(old, clientLeft)
				old = v
			}
		},
		"swings between two networks, its sockets die unnoticed": func(s *story) {
			at := []string{"192.0.2.1", "198.51.100.7"}
			old := s.open(device.as(0))
			for i := 1; i < 50; i++ {
				v := device.as(i)
				v.addr = at[i%2]
				v = s.open(v)
				s.pass(3 * time.Minute)
				s.end(old, lost)
				old = v
			}
		},
		"two programs that move together": func(s *story) {
			for i := range 20 {
				for _, addr := range []string{"192.0.2.1", "198.51.100.7"} {
					a, b := device.as("a"), device.as("b")
					a.addr, b.addr, b.hello = addr, addr, "go"
					a, b = s.open(a), s.open(b)
					s.pass(time.Duration(i) * time.Second)
					s.end(b, clientLeft)
					s.end(a, clientLeft)
				}
			}
		},
		"an update and a move, and both undone": func(s *story) {
			s.stay(device, time.Minute, clientLeft)
			s.stay(thief, time.Minute, clientLeft)
			s.stay(device, time.Minute, clientLeft)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			tale(s)
			s.pass(time.Hour)
			s.event(countersign.Event{Type: countersign.CRLPublished})
			for _, f := range s.found {
				if f.Rule == SharedCertificate {
					t.Errorf("at %s: %s %v", f.At, f.Summary, f.Evidence)
				}
			}
		})
	}
}

// TestClientIDsOfOneDeviceAreItsOwn lets a device use any number of client ids. The memory
// of other devices must stay, and so must a conflict about one of its own.
func TestClientIDsOfOneDeviceAreItsOwn(t *testing.T) {
	s := tell(t)
	for i := range 6 {
		fight(s, 1, false, visit{device: "pump-2", addr: []string{"192.0.2.1", "198.51.100.7"}[i%2], client: "fought"})
		for j := range 3 * maxClients {
			v := device.as(fmt.Sprint(i, "-", j))
			v.addr = "192.0.2.1"
			s.stay(v, 0, clientLeft)
			v.device, v.client = "pump-2", "noise-"+v.client
			s.stay(v, 0, clientLeft)
		}
	}
	for _, f := range s.found {
		if f.Rule == ClientIDConflict && f.Device == "pump-2" {
			return
		}
	}
	t.Errorf("got %s, want the fight of pump-2", ruleNames(s.found))
}

// TestMemoryOfADeviceIsBounded floods the memory of one device in each way and checks its
// size.
func TestMemoryOfADeviceIsBounded(t *testing.T) {
	for name, vary := range map[string]func(v *visit, i int){
		"one party":         func(*visit, int) {},
		"many addresses":    func(v *visit, i int) { v.addr = fmt.Sprintf("198.51.%d.7", i%200) },
		"many fingerprints": func(v *visit, i int) { v.hello = fmt.Sprint(i) },
		"many identities":   func(v *visit, i int) { v.cert = countersign.Serial(fmt.Sprint(i % 20)) },
		"all of them at once": func(v *visit, i int) {
			v.addr, v.hello, v.cert = fmt.Sprintf("198.51.%d.7", i%200), fmt.Sprint(i), countersign.Serial(fmt.Sprint(i%20))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			for i := range 3000 {
				v := thief.as(i)
				vary(&v, i)
				s.open(v)
			}
			d := s.m.holders.by.Look("pump-1")
			sessions := 0
			for _, u := range d.uses {
				if len(u.parties) > maxParties {
					t.Errorf("%d parties of one identity", len(u.parties))
				}
				for _, p := range u.parties {
					sessions += len(p.open)
				}
			}
			if most := maxSessions + maxIdentities*maxParties; len(d.uses) > maxIdentities || sessions > most { // each party keeps one
				t.Errorf("%d identities, %d sessions, want at most %d and %d", len(d.uses), sessions, maxIdentities, most)
			}
			if n := len(s.m.holders.due); n > 1 {
				t.Errorf("the device is due %d times", n)
			}
			if n := len(*s.m.clients.by.Look("pump-1")); n > maxClients {
				t.Errorf("%d client ids", n)
			}
			if strings.Contains(ruleNames(s.found), "pump-2") {
				t.Error("another device was found")
			}
		})
	}
}
