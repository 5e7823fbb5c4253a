package detect

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// story is a log that a test writes, with a machine that reads it.
type story struct {
	t     *testing.T
	m     *machine
	seq   int64
	ids   int
	now   time.Time
	found []countersign.Finding
	usual countersign.Usual
}

func tell(t *testing.T) *story {
	s := &story{t: t, now: start}
	s.m = newMachine(func(string) countersign.Usual { return s.usual })
	return s
}

func (s *story) pass(d time.Duration) { s.now = s.now.Add(d) }

func (s *story) event(e countersign.Event) {
	s.seq++
	e.Seq, e.At = s.seq, s.now
	if e.Fleet == "" {
		e.Fleet = "default"
	}
	if e.Actor == "" && e.Device != "" {
		e.Actor = countersign.DeviceActor(e.Device)
	}
	for _, f := range s.m.step(&e) {
		s.found = append(s.found, f.Finding)
	}
}

// visit is a session of a device.
type visit struct {
	device, addr, client, hello, software, protocol, node, cred string
	cert                                                        countersign.Serial
	id                                                          string
}

func (s *story) open(v visit) visit {
	s.ids++
	v.id = fmt.Sprint("session-", s.ids)
	if v.client == "" {
		v.client = v.device
	}
	if v.protocol == "" {
		v.protocol = "MQTT 5"
	}
	e := countersign.Event{
		Type: countersign.SessionOpened, Device: v.device, Remote: v.addr + ":4711", Via: "mqtt",
		Data: map[string]string{"session": v.id, "client_id": v.client, "protocol": v.protocol, "hello": v.hello, "software": v.software, "node": v.node},
	}
	if strings.Contains(v.addr, ":") {
		e.Remote = "[" + v.addr + "]:4711"
	}
	if v.cred != "" {
		e.Data["credential"] = v.cred
	} else {
		if v.cert == "" {
			v.cert = countersign.Serial("c-" + v.device)
		}
		e.Cert = countersign.CertRef{Issuer: "issuing", Serial: v.cert}
	}
	s.event(e)
	return v
}

func (s *story) end(v visit, why string) {
	s.event(countersign.Event{
		Type: countersign.SessionClosed, Device: v.device, Remote: v.addr + ":4711", Via: "mqtt", Code: countersign.Code(why),
		Data: map[string]string{"session": v.id, "client_id": v.client},
	})
}

// refuse is a refused connection with a certificate of the device.
func (s *story) refuse(device, addr string, code countersign.Code, data map[string]string) {
	e := countersign.Event{Type: countersign.ConnectRefused, Device: device, Remote: addr + ":4711", Via: "mqtt", Code: code, Reason: "because", Data: data}
	if device != "" && code != countersign.BadCredential {
		e.Cert = countersign.CertRef{Issuer: "issuing", Serial: countersign.Serial("c-" + device)}
	}
	s.event(e)
}

// silent fails the test if there is a finding.
func (s *story) silent() {
	s.t.Helper()
	for _, f := range s.found {
		s.t.Errorf("at %s: got finding %s about %s (%s), want none", f.At, f.Rule, f.Subject, f.Summary)
	}
}

// ruleOf returns the rule of that name, or the zero Rule.
func ruleOf(name string) Rule {
	list := Rules()
	if i := slices.IndexFunc(list, func(r Rule) bool { return r.Name == name }); i >= 0 {
		return list[i]
	}
	return Rule{}
}

// once fails the test unless there is exactly one finding, of the rule. It returns it.
func (s *story) once(rule string) countersign.Finding {
	s.t.Helper()
	if len(s.found) != 1 {
		s.t.Fatalf("got %d findings %s, want one %s", len(s.found), ruleNames(s.found), rule)
	}
	f := s.found[0]
	r := ruleOf(rule)
	if f.Rule != rule || f.Subject == "" || f.Summary == "" || f.At.IsZero() || len(f.Events) == 0 || len(f.Events) > max(r.Threshold, 2) {
		s.t.Errorf("got %+v, want a whole finding of %s", f, rule)
	}
	for _, seq := range f.Events {
		if seq < 1 || seq > s.seq {
			s.t.Errorf("finding %s names event %d, which there is not", f.Rule, seq)
		}
	}
	return f
}

func ruleNames(list []countersign.Finding) string {
	var names []string
	for _, f := range list {
		names = append(names, f.Rule+" "+f.Subject)
	}
	return strings.Join(names, ", ")
}

// has fails the test unless the finding has the evidence.
func (s *story) has(f countersign.Finding, want map[string]string) {
	s.t.Helper()
	for k, v := range want {
		if !strings.Contains(f.Evidence[k], v) {
			s.t.Errorf("%s: evidence %s: got %q, want %q (all: %v)", f.Rule, k, f.Evidence[k], v, f.Evidence)
		}
	}
}

func TestCatalogIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules() {
		if seen[r.Name] {
			t.Errorf("rule %s is there twice", r.Name)
		}
		seen[r.Name] = true
		if r.Title == "" || r.Severity == "" || r.Threshold < 1 || len(r.Default) == 0 || r.Sees == "" || r.Why == "" || r.Do == "" || r.FalsePositives == "" {
			t.Errorf("rule %s is not complete: %+v", r.Name, r)
		}
		if slices.ContainsFunc(r.Default, func(m countersign.Mitigation) bool {
			return m != countersign.MitigateNote && m != countersign.MitigateAlert
		}) {
			t.Errorf("rule %s takes something away by default: %v", r.Name, r.Default)
		}
	}
}

func TestOneCertificateAtTwoAddressesIsFound(t *testing.T) {
	s := tell(t)
	s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/a"})
	s.pass(time.Hour)
	s.open(visit{device: "pump-1", addr: "198.51.100.7", client: "pump-1/b"})
	s.pass(overlapFor - time.Second)
	s.event(countersign.Event{Type: countersign.CRLPublished})
	s.silent()
	s.pass(time.Second)
	s.event(countersign.Event{Type: countersign.CRLPublished})
	f := s.once(SharedCertificate)
	if f.Subject != "device:pump-1" || f.Device != "pump-1" || f.Severity != countersign.SeverityCritical || f.Cert.Serial != "c-pump-1" || f.Fleet != "default" {
		t.Errorf("got %+v", f)
	}
	s.has(f, map[string]string{"address_1": "192.0.2.1:", "address_2": "198.51.100.7:", "client_id_1": "pump-1/a", "client_id_2": "pump-1/b"})
	if !slices.Equal(f.Events, []int64{1, 2}) {
		t.Errorf("events: got %v, want those of both sessions", f.Events)
	}
	s.open(visit{device: "pump-1", addr: "203.0.113.9", client: "pump-1/c"}) // a third one: reported once
	s.pass(overlapFor)
	s.event(countersign.Event{Type: countersign.CRLPublished})
	s.once(SharedCertificate)
}

func TestTimeAloneCompletesAnOverlap(t *testing.T) {
	s := tell(t)
	s.open(visit{device: "pump-1", addr: "192.0.2.1", cred: "secret:1", client: "pump-1/a"})
	s.open(visit{device: "pump-1", addr: "198.51.100.7", cred: "secret:1"})
	if got := s.m.elapse(s.now.Add(overlapFor - time.Second)); len(got) != 0 {
		t.Errorf("too early: %v", got)
	}
	if got := s.m.elapse(s.now.Add(overlapFor)); len(got) != 1 || got[0].seq != 0 || !got[0].due.Equal(s.now.Add(overlapFor)) {
		t.Errorf("elapse: got %+v, want one finding by time", got)
	}
}

// TestHonestSessionsDoNotOverlap has the stories in which one honest device has, or seems
// to have, two sessions.
func TestHonestSessionsDoNotOverlap(t *testing.T) {
	for name, tale := range map[string]func(s *story){
		"it changes networks and takes itself over": func(s *story) {
			a := s.open(visit{device: "pump-1", addr: "192.0.2.1"})
			s.pass(time.Minute)
			s.open(visit{device: "pump-1", addr: "198.51.100.7"})
			s.end(a, "taken_over")
		},
		"it changes networks with a new client id": func(s *story) {
			a := s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/1"})
			s.open(visit{device: "pump-1", addr: "198.51.100.7", client: "pump-1/2"})
			s.pass(3 * time.Minute)
			s.end(a, "network error")
		},
		"two programs behind one address": func(s *story) {
			s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/1", hello: "a"})
			s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/2", hello: "b"})
		},
		"two programs on IPv4 and IPv6": func(s *story) {
			s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/1"})
			s.open(visit{device: "pump-1", addr: "2001:db8::1", client: "pump-1/2"})
		},
		"privacy addresses of one network": func(s *story) {
			s.open(visit{device: "pump-1", addr: "2001:db8::1", client: "pump-1/1"})
			s.open(visit{device: "pump-1", addr: "2001:db8::2", client: "pump-1/2"})
		},
		"the old and the renewed certificate": func(s *story) {
			s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/1", cert: "0a"})
			s.open(visit{device: "pump-1", addr: "198.51.100.7", client: "pump-1/2", cert: "0b"})
		},
		"the server crashed": func(s *story) {
			s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/1", node: "one"})
			s.event(countersign.Event{Type: countersign.ServerStarted, Data: map[string]string{"node": "one"}})
			s.open(visit{device: "pump-1", addr: "198.51.100.7", client: "pump-1/2", node: "one"})
		},
		"the end was not written down": func(s *story) {
			s.open(visit{device: "pump-1", addr: "192.0.2.1", client: "pump-1/1"})
			s.open(visit{device: "pump-1", addr: "198.51.100.7", client: "pump-1/1"})
			s.open(visit{device: "pump-2", addr: "192.0.2.1", client: "pump-2/1"})
			s.event(countersign.Event{Type: countersign.EventsSuppressed})
			s.found = nil
			s.open(visit{device: "pump-2", addr: "198.51.100.7", client: "pump-2/2"})
		},
		"an operator's browsers": func(s *story) {
			s.open(visit{device: "operator/ann", addr: "192.0.2.1", client: "1", cred: "token:1"})
			s.open(visit{device: "operator/ann", addr: "198.51.100.7", client: "2", cred: "token:1"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			tale(s)
			s.pass(time.Hour)
			s.event(countersign.Event{Type: countersign.CRLPublished})
			s.silent()
		})
	}
}

// fight lets parties take over each other's session under one client id, n times.
func fight(s *story, n int, late bool, parties ...visit) {
	var last visit
	for i := range n {
		v := parties[i%len(parties)]
		if i > 0 && !late {
			s.end(last, "taken_over")
		}
		v = s.open(v)
		if i > 0 && late { // recorded in the other order
			s.end(last, "taken_over")
		}
		last = v
		s.pass(20 * time.Second)
	}
}

func TestClientsThatThrowEachOtherOutAreFound(t *testing.T) {
	for _, late := range []bool{false, true} {
		s := tell(t)
		fight(s, 30, late, visit{device: "pump-1", addr: "192.0.2.1"}, visit{device: "pump-1", addr: "198.51.100.7"})
		f := s.once(ClientIDConflict)
		s.has(f, map[string]string{"client_id": "pump-1", "returns": "3"})
		if want := start.Add(4 * 20 * time.Second); !f.At.Equal(want) {
			t.Errorf("found at %s, want with the third return at %s", f.At, want)
		}
	}
	s := tell(t) // behind one NAT, distinguished by TLS
	fight(s, 8, false, visit{device: "pump-1", addr: "192.0.2.1", hello: "a"}, visit{device: "pump-1", addr: "192.0.2.1", hello: "b"})
	s.once(ClientIDConflict)
}

func TestHonestTakeoversAreNoConflict(t *testing.T) {
	s := tell(t)
	fight(s, 30, false, visit{device: "pump-1", addr: "192.0.2.1"}) // a bad line
	var roam []visit                                                // a car
	for i := range 30 {
		roam = append(roam, visit{device: "car-1", addr: fmt.Sprintf("192.0.%d.1", i)})
	}
	fight(s, 30, false, roam...)
	for range 30 { // from one network to the other and back, leaving in order
		for _, addr := range []string{"192.0.2.1", "198.51.100.7"} {
			v := s.open(visit{device: "phone-1", addr: addr})
			s.pass(20 * time.Second)
			s.end(v, "client_left")
		}
	}
	for range 5 { // the same without its sockets being closed, but not so often
		fight(s, 2, false, visit{device: "bus-1", addr: "192.0.2.1"}, visit{device: "bus-1", addr: "198.51.100.7"})
		s.pass(10 * time.Minute)
	}
	s.silent()
}
