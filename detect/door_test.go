package detect

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

func TestConnectAfterTheEndIsFoundOnce(t *testing.T) {
	for _, c := range []struct {
		code countersign.Code
		rule string
	}{
		{countersign.CertIsRevoked, ConnectAfterRevocation},
		{countersign.DeviceGone, ConnectAfterRevocation},
		{countersign.DeviceOnHold, ConnectAfterSuspension},
		{countersign.CertIsHeld, ConnectAfterSuspension},
		{countersign.CertExpired, ConnectAfterExpiry},
	} {
		s := tell(t)
		ended := s.now.Add(-3 * time.Hour).Format(time.RFC3339)
		for range 1000 { // it tries again every minute
			s.refuse("pump-1", "192.0.2.1", c.code, map[string]string{"ended_at": ended})
			s.pass(time.Minute)
		}
		f := s.once(c.rule)
		s.has(f, map[string]string{"since": "3 h", "ended_at": ended, "address": "192.0.2.1", "code": string(c.code)})
		s.pass(24 * time.Hour)
		s.refuse("pump-1", "192.0.2.1", c.code, nil)
		if len(s.found) != 2 {
			t.Errorf("%s a day later: got %d findings, want another one", c.rule, len(s.found))
		}
	}
}

// TestRenewalAfterTheEndIsFound presents a revoked certificate for a renewal. A client that
// only claims the device's name there must not lead to a finding.
func TestRenewalAfterTheEndIsFound(t *testing.T) {
	s := tell(t)
	s.event(countersign.Event{Type: countersign.EnrollRefused, Device: "pump-1", Actor: "unknown", Via: "est", Code: countersign.DeviceOnHold, Remote: "192.0.2.1:1"})
	s.silent()
	s.event(countersign.Event{
		Type: countersign.EnrollRefused, Device: "pump-1", Via: "est", Code: countersign.CertIsRevoked, Remote: "192.0.2.1:1",
		Cert: countersign.CertRef{Issuer: "issuing", Serial: "0a"},
	})
	if f := s.once(ConnectAfterRevocation); f.Cert.Serial != "0a" {
		t.Errorf("got certificate %v", f.Cert)
	}
}

func TestUnknownIssuersAreFound(t *testing.T) {
	s := tell(t)
	claims := map[string]string{"claims_issuer": "CN=Pump Works CA", "claims_subject": "CN=pump-1"}
	for i := range 20 { // unknown clients, each once
		s.refuse("", fmt.Sprintf("203.0.113.%d", i), countersign.CertUnknown, claims)
	}
	s.silent()
	for range 10 {
		s.refuse("", "192.0.2.1", countersign.CertUnknown, claims)
		s.pass(time.Minute)
	}
	f := s.once(UnknownIssuer)
	if f.Subject != "address:192.0.2.1/32" || f.Severity != countersign.SeverityLow {
		t.Errorf("got %+v", f)
	}
	s.has(f, claims)
	s = tell(t)
	s.refuse("", "192.0.2.1", countersign.CertUnknown, map[string]string{"more_before": "7"}) // eight in one line
	s.once(UnknownIssuer)
}

func TestWrongSecretsAreFound(t *testing.T) {
	s := tell(t)
	s.refuse("pump-1", "192.0.2.1", countersign.BadCredential, map[string]string{"tried": "0a"})
	f := s.once(WrongSecret)
	if f.Severity != countersign.SeverityLow || f.Subject != "device:pump-1" {
		t.Errorf("the first: got %+v, want one of severity low about the device", f)
	}
	for i := range 4 {
		s.pass(time.Minute)
		s.refuse("pump-1", fmt.Sprintf("192.0.2.%d", i), countersign.BadCredential, map[string]string{"tried": fmt.Sprint(i)})
	}
	if len(s.found) != 2 || s.found[1].Severity != countersign.SeverityHigh || len(s.found[1].Events) != 5 {
		t.Errorf("five within an hour: got %+v, want another one of severity high with their events", s.found)
	}
	s = tell(t) // one a day is a mistake
	for range 7 {
		s.refuse("pump-1", "192.0.2.1", countersign.BadCredential, nil)
		s.pass(25 * time.Hour)
	}
	for _, f := range s.found {
		if f.Severity != countersign.SeverityLow {
			t.Errorf("one a day: got severity %s", f.Severity)
		}
	}
}

func TestOneSecretOverManyDevicesIsFound(t *testing.T) {
	s := tell(t)
	for i := range 30 { // slowly, from everywhere, for devices that there are not
		s.refuse("", fmt.Sprintf("203.0.113.%d", i), countersign.BadCredential, map[string]string{"tried": "beef", "claims_device": fmt.Sprint("pump-", i%7)})
		s.pass(30 * time.Minute)
	}
	f := s.once(SecretSpraying)
	s.has(f, map[string]string{"tried": "beef", "devices": "pump-0, pump-1, pump-2, pump-3, pump-4"})
	if f.Subject != "server" || f.Severity != countersign.SeverityHigh {
		t.Errorf("got %+v", f)
	}
	s = tell(t)
	for i := range 50 { // one client with an old secret
		s.refuse("", "203.0.113.9", countersign.BadCredential, map[string]string{"tried": "beef", "claims_device": "pump-1"})
		s.refuse("", fmt.Sprintf("198.51.100.%d", i), countersign.BadCredential, map[string]string{"tried": fmt.Sprint(i), "client_id": fmt.Sprint("x", i)})
	}
	s.silent()
}

func TestManyNamesFromOneAddressAreFound(t *testing.T) {
	s := tell(t)
	for i := range 40 {
		s.refuse("", "2001:db8::"+fmt.Sprint(i), countersign.BadCredential, map[string]string{"tried": fmt.Sprint(i), "client_id": fmt.Sprint("pump-", i)})
		s.pass(time.Minute)
	}
	f := s.once(DeviceProbing)
	if f.Subject != "address:2001:db8::/64" {
		t.Errorf("got subject %s, want the /64", f.Subject)
	}
	s.has(f, map[string]string{"devices": "pump-0, pump-1"})
}

func TestWrongClocksAreHelped(t *testing.T) {
	s := tell(t)
	s.refuse("pump-1", "192.0.2.1", countersign.CertNotYetValid, nil)
	s.refuse("pump-1", "192.0.2.1", countersign.CertNotYetValid, nil)
	s.silent()
	for range 100 {
		s.refuse("pump-1", "192.0.2.1", countersign.CertNotYetValid, nil)
		s.pass(time.Hour)
	}
	if f := s.once(ClockSkew); f.Severity != countersign.SeverityInfo {
		t.Errorf("got severity %s, want info", f.Severity)
	}
	s = tell(t)
	for range 5 { // an access token of the server expires
		s.refuse("pump-1", "192.0.2.1", countersign.CredentialExpire, map[string]string{"kind": "token"})
	}
	s.silent()
	for range 5 { // the key was stopped
		s.refuse("pump-1", "192.0.2.1", countersign.CredentialExpire, map[string]string{"kind": "sas"})
	}
	s.silent()
	for range 5 {
		s.refuse("pump-1", "192.0.2.1", countersign.CredentialExpire, map[string]string{"kind": "sas", "ended_at": "2026-01-01T00:00:00Z"})
	}
	s.once(ClockSkew)
}

func TestDeniedTopicsInABurstAreFound(t *testing.T) {
	deny := func(s *story, device, topic string) {
		s.event(countersign.Event{
			Type: countersign.TopicDenied, Device: device, Remote: "192.0.2.1:1", Via: "mqtt", Code: countersign.NotAllowed,
			Data: map[string]string{"action": "subscribe", "topic": topic},
		})
	}
	s := tell(t)
	for range 500 { // a wrong topic, every minute
		deny(s, "pump-1", "status")
		s.pass(time.Minute)
	}
	s.silent()
	for i := range 60 {
		deny(s, "pump-1", fmt.Sprintf("devices/pump-%d/#", i))
		s.pass(time.Second)
	}
	f := s.once(DeniedTopics)
	s.has(f, map[string]string{"acts": "subscribe devices/pump-15/#"})
	if f.Subject != "device:pump-1" || f.Device != "pump-1" || len(f.Events) != 20 {
		t.Errorf("got %+v", f)
	}
	s = tell(t)
	for i := range 60 { // a guest has a new name each time
		deny(s, fmt.Sprint("guest/", i), "devices/#")
	}
	if f := s.once(DeniedTopics); f.Subject != "address:192.0.2.1/32" || f.Device != "" {
		t.Errorf("got %+v, want one about the guests' address", f)
	}
}

func TestEnrollmentAtUnusualPlaceOrTimeIsFound(t *testing.T) {
	issue := func(s *story, device, addr string, data map[string]string) {
		s.event(countersign.Event{Type: countersign.CertIssued, Device: device, Fleet: "pumps", Remote: addr, Via: "est", Data: data})
	}
	first := map[string]string{"method": "claim", "evidence": "claim:line-1"}
	s := tell(t)
	s.usual = countersign.Usual{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Hours: "06-20"}
	issue(s, "pump-1", "192.0.2.9:1", first)
	issue(s, "pump-2", "198.51.100.1:1", map[string]string{"predecessor": "0a"}) // a renewal may come from anywhere
	s.silent()
	issue(s, "pump-3", "198.51.100.1:1", first)
	f := s.once(UnusualEnrollment)
	if f.Subject != "fleet:pumps" || f.Device != "pump-3" {
		t.Errorf("got %+v", f)
	}
	s.has(f, map[string]string{"evidence": "claim:line-1", "method": "claim"})
	for i := range 99 {
		issue(s, fmt.Sprint("pump-", i+4), "198.51.100.1:1", first)
	}
	if len(s.found) != 3 {
		t.Errorf("100 of them: got %d findings, want three, at 1, 10 and 100", len(s.found))
	}

	s = tell(t)
	s.usual = countersign.Usual{Hours: "06-20"}
	s.pass(7*time.Hour + 59*time.Minute) // 19:59
	issue(s, "pump-1", "192.0.2.9:1", first)
	s.silent()
	s.pass(time.Minute)
	issue(s, "pump-2", "192.0.2.9:1", first)
	s.once(UnusualEnrollment)

	s = tell(t) // a fleet without usual networks and hours
	issue(s, "pump-1", "192.0.2.9:1", first)
	s.silent()
}

func TestHoursGoOverMidnight(t *testing.T) {
	for _, c := range []struct {
		text string
		hour int
		want bool
	}{
		{"06-20", 5, false},
		{"06-20", 6, true},
		{"06-20", 19, true},
		{"06-20", 20, false},
		{"22-04", 23, true},
		{"22-04", 3, true},
		{"22-04", 4, false},
		{"22-04", 12, false},
		{"00-24", 23, true},
	} {
		from, to, ok := hours(c.text)
		if got := within(from, to, c.hour); !ok || got != c.want {
			t.Errorf("%s at %d: got %v, %v, want %v", c.text, c.hour, got, ok, c.want)
		}
	}
	for _, bad := range []string{"", "6", "06-25", "a-b", "-1-5", "06-06", "24-6"} {
		if _, _, ok := hours(bad); ok {
			t.Errorf("hours(%q): taken", bad)
		}
	}
}

func TestRecordedFindingsPassOneToOne(t *testing.T) {
	for typ, rule := range map[countersign.EventType]string{
		countersign.FindingFork: RenewalFork, countersign.FindingClaim: ClaimMisuse, countersign.FindingGroupKey: GroupKeyLeaked,
		countersign.FindingKeyReuse: KeyReused, countersign.FindingSharedFactor: SharedFactor, countersign.FindingGuessing: SecretGuessing,
	} {
		s := tell(t)
		s.event(countersign.Event{Type: typ, Device: "pump-1", Actor: countersign.System, Reason: "because", Remote: "192.0.2.1:1", Data: map[string]string{"label": "x"}})
		f := s.once(rule)
		s.has(f, map[string]string{"label": "x", "address": "192.0.2.1:1"})
		if f.Summary != "pump-1: because" || f.Subject != "device:pump-1" {
			t.Errorf("%s: got %+v", rule, f)
		}
	}
	for _, claimed := range []bool{false, true} { // a name that was only claimed must not lead to a response
		s := tell(t)
		e := countersign.Event{Type: countersign.FindingKeyReuse, Device: "pump-1", Remote: "192.0.2.1:1"}
		if claimed {
			e.Data = map[string]string{"claimed": "true"}
		}
		s.event(e)
		if f := s.once(KeyReused); f.Claimed != claimed {
			t.Errorf("event with %v: claimed is %v", e.Data, f.Claimed)
		}
	}
	s := tell(t)
	blocked := countersign.Event{Type: countersign.AddressBlocked, Actor: countersign.OperatorActor("ann"), Data: map[string]string{"network": "192.0.2.1/32"}}
	s.event(blocked)
	s.silent()
	blocked.Actor = countersign.System
	s.event(blocked)
	if f := s.once(AddressBlocked); f.Subject != "address:192.0.2.1/32" {
		t.Errorf("got subject %s", f.Subject)
	}
	s = tell(t)
	s.event(countersign.Event{Type: countersign.EventsSuppressed, Actor: countersign.System, Reason: "too much", Data: map[string]string{"count": "9"}})
	s.once(EventsLost)
	s = tell(t)
	for _, own := range []countersign.EventType{countersign.FindingRaised, countersign.AlertOpened, countersign.AlertChanged, countersign.MitigationFailed} {
		s.event(countersign.Event{Type: own, Device: "pump-1", Actor: countersign.System})
	}
	s.silent() // events of detectors are no findings
}

func TestWhatBefallsManyIsOneFinding(t *testing.T) {
	s := tell(t)
	for i := range 5000 { // a fleet of 5,000 has been revoked
		s.refuse(fmt.Sprint("pump-", i), "192.0.2.1", countersign.CertIsRevoked, nil)
		s.pass(10 * time.Millisecond)
	}
	if len(s.found) != massAfter+3 { // and those at 21, 210 and 2,100
		t.Fatalf("got %d findings, want %d", len(s.found), massAfter+3)
	}
	last := s.found[len(s.found)-1]
	if last.Subject != "fleet:default" || last.Device != "" || last.Evidence["findings"] != "2100" {
		t.Errorf("got %+v, want one of the fleet", last)
	}
	s = tell(t)
	for i := range 100 { // each needs an action of its own
		s.event(countersign.Event{Type: countersign.FindingFork, Device: fmt.Sprint("pump-", i), Actor: countersign.System})
	}
	if len(s.found) != 100 {
		t.Errorf("forks: got %d findings, want each", len(s.found))
	}
}
