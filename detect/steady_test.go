package detect

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

// The steady story is a fleet of honest devices with ordinary faults. It must not lead to
// a finding above a note.
const (
	steadyDevices = 1000
	steadyDays    = 30
)

// steady generates the log of such a fleet, in order of time.
type steady struct {
	rand    *rand.Rand
	list    []countersign.Event
	devices []*honest
	sites   [][]*honest // devices behind one router
	ids     int
}

type honest struct {
	name, site, addr string
	mobile, v6       bool
	serial           int
	firmware         int
	programs         int    // clients of its own, each with a client id
	random           bool   // new client ids each time
	session          []open // by program
}

type open struct {
	id, client, addr string
	serial           int
}

func (s *steady) add(at time.Time, e countersign.Event) {
	e.At = at
	if e.Fleet == "" {
		e.Fleet = "pumps"
	}
	s.list = append(s.list, e)
}

func (d *honest) cert() countersign.CertRef {
	return countersign.CertRef{Issuer: "issuing", Serial: countersign.Serial(fmt.Sprint(d.name, "-", d.serial))}
}

// home assigns a device an address: that of its site, or one of its carrier's.
func (s *steady) home(d *honest) {
	switch {
	case !d.mobile:
		d.addr = d.site
	case d.v6:
		d.addr = fmt.Sprintf("[2001:db8:%x:%x::1]", s.rand.IntN(4000), s.rand.IntN(60000))
	default:
		d.addr = fmt.Sprintf("100.%d.%d.%d", 64+s.rand.IntN(3), s.rand.IntN(250), 1+s.rand.IntN(250))
	}
}

func (s *steady) connect(at time.Time, d *honest, p int) {
	s.ids++
	o := open{id: fmt.Sprint("s", s.ids), client: fmt.Sprint(d.name, "/", p), addr: fmt.Sprint(d.addr, ":", 1024+s.rand.IntN(60000)), serial: d.serial}
	if d.random {
		o.client = fmt.Sprint(d.name, ":", s.ids)
	}
	d.session[p] = o
	s.add(at, countersign.Event{
		Type: countersign.SessionOpened, Actor: countersign.DeviceActor(d.name), Device: d.name, Cert: d.cert(), Remote: o.addr, Via: "mqtt",
		Data: map[string]string{
			"session": o.id, "client_id": o.client, "protocol": "MQTT 5", "node": "one",
			"hello": fmt.Sprint("tls ", d.firmware, p), "software": fmt.Sprint("pump/", d.firmware),
		},
	})
}

func (s *steady) leave(at time.Time, d *honest, p int, why string) {
	o := d.session[p]
	d.session[p] = open{}
	if o.id == "" {
		return
	}
	s.add(at, countersign.Event{
		Type: countersign.SessionClosed, Actor: countersign.DeviceActor(d.name), Device: d.name, Cert: d.cert(), Remote: o.addr, Via: "mqtt", Code: countersign.Code(why),
		Data: map[string]string{"session": o.id, "client_id": o.client},
	})
}

// again lets a device connect again without its socket being closed: the old session is
// taken over, or found dead minutes later.
func (s *steady) again(at time.Time, d *honest) {
	for p := range d.programs {
		switch {
		case d.session[p].id == "":
		case d.random:
			s.leave(at.Add(time.Duration(s.rand.IntN(170))*time.Second), d, p, "network error")
		default:
			s.leave(at.Add(-time.Millisecond), d, p, "taken_over")
		}
		s.connect(at, d, p)
	}
}

func (s *steady) restart(at time.Time, d *honest) {
	for p := range d.programs {
		s.leave(at, d, p, "client_left")
		s.connect(at.Add(time.Duration(5+s.rand.IntN(30))*time.Second), d, p)
	}
}

func (s *steady) renew(at time.Time, d *honest) {
	before := d.serial
	d.serial++
	s.add(at, countersign.Event{
		Type: countersign.CertIssued, Actor: countersign.DeviceActor(d.name), Device: d.name, Cert: d.cert(), Remote: d.addr + ":99", Via: "est",
		Data: map[string]string{"predecessor": fmt.Sprint(before), "method": "certificate"},
	})
	s.restart(at.Add(time.Second), d)
}

func (s *steady) enroll(at time.Time, d *honest) {
	s.add(at, countersign.Event{
		Type: countersign.CertIssued, Actor: "token:line-1", Device: d.name, Cert: d.cert(), Remote: d.addr + ":99", Via: "est", Data: map[string]string{"method": "token"},
	})
}

// act is an action of a device at some time of the day.
type act struct {
	at time.Time
	do func(at time.Time)
}

// live generates a day of one device.
func (s *steady) live(day time.Time, d *honest) {
	var acts []act
	sometime := func(do func(at time.Time)) {
		acts = append(acts, act{day.Add(time.Duration(s.rand.Int64N(int64(22 * time.Hour)))), do})
	}
	for range s.rand.IntN(4) { // a bad line
		sometime(func(at time.Time) {
			if d.mobile {
				s.home(d)
			}
			s.again(at, d)
		})
	}
	if s.rand.IntN(4) == 0 {
		sometime(func(at time.Time) { s.restart(at, d) })
	}
	if d.mobile && s.rand.IntN(20) == 0 { // to the other carrier
		sometime(func(at time.Time) {
			d.v6 = !d.v6
			s.home(d)
			s.again(at, d)
		})
	}
	if s.rand.IntN(10) == 0 { // short-lived certificates
		sometime(func(at time.Time) { s.renew(at, d) })
	}
	if s.rand.IntN(200) == 0 { // a mistake of a program
		sometime(func(at time.Time) { s.mistake(at, d) })
	}
	slices.SortFunc(acts, func(a, b act) int { return a.at.Compare(b.at) })
	for i, a := range acts {
		if i > 0 && a.at.Sub(acts[i-1].at) < 4*time.Minute { // an act may take three
			a.at = acts[i-1].at.Add(4 * time.Minute)
			acts[i] = a
		}
		a.do(a.at)
	}
}

func (s *steady) mistake(at time.Time, d *honest) {
	for i := range 5 {
		s.add(at.Add(time.Duration(i)*time.Second), countersign.Event{
			Type: countersign.TopicDenied, Actor: countersign.DeviceActor(d.name), Device: d.name, Cert: d.cert(), Remote: d.addr + ":99", Via: "mqtt",
			Code: countersign.NotAllowed, Data: map[string]string{"action": "publish", "topic": "debug"},
		})
	}
	s.add(at, countersign.Event{ // a clock that was right a second later
		Type: countersign.ConnectRefused, Actor: countersign.DeviceActor(d.name), Device: d.name, Cert: d.cert(), Remote: d.addr + ":99", Via: "mqtt",
		Code: countersign.CertNotYetValid,
	})
}

// incidents generates the incidents of a day that affect many devices.
func (s *steady) incidents(n int, day time.Time) {
	site := s.sites[s.rand.IntN(len(s.sites))]
	cut := day.Add(23*time.Hour + time.Minute)
	if n%2 == 0 { // a power cut, and the router comes back with another address
		fresh := fmt.Sprintf("203.%d.113.%d", n, s.rand.IntN(250))
		for _, d := range site {
			d.site = fresh
			s.home(d)
			s.again(cut.Add(time.Duration(s.rand.IntN(300))*time.Second), d)
		}
	}
	cut = cut.Add(15 * time.Minute)
	switch {
	case n == 12 || n == 20: // the server restarts in order, or crashes
		for _, d := range s.devices {
			for p := range d.programs {
				if n == 12 {
					s.leave(cut, d, p, "server_stopping")
				}
				d.session[p] = open{}
			}
		}
		s.add(cut.Add(time.Second), countersign.Event{Type: countersign.ServerStarted, Actor: countersign.System, Fleet: "-", Data: map[string]string{"node": "one"}})
		for _, d := range s.devices {
			s.home(d)
			s.again(cut.Add(time.Duration(2+s.rand.IntN(60))*time.Second), d)
		}
	case n >= 14 && n < 19: // a rollout: ten devices, then a quarter, then the rest
		share := [...]int{10, 260, 510, 760, steadyDevices}[n-14]
		for _, d := range s.devices[:share] {
			if d.firmware == 0 {
				d.firmware = 1
				s.restart(cut.Add(time.Duration(s.rand.IntN(1500))*time.Second), d)
			}
		}
	case n == 24: // a new plant: fifty devices at a new address, first at the line, then at their sites
		for i := range 50 {
			d := &honest{name: fmt.Sprint("new-", i), site: "198.51.100.200", firmware: 1, programs: 1, session: make([]open, 1)}
			s.home(d)
			s.enroll(cut, d)
			s.connect(cut.Add(time.Second), d, 0)
			s.leave(cut.Add(time.Minute), d, 0, "client_left")
		}
	}
}

// steadyStory generates the log.
func steadyStory(seed uint64) []countersign.Event {
	s := &steady{rand: rand.New(rand.NewPCG(seed, 1))}
	for i := range steadyDevices {
		d := &honest{name: fmt.Sprint("pump-", i), mobile: i%10 >= 7, v6: i%20 == 9, random: i%3 == 0, programs: 1 + i%50/49}
		d.session = make([]open, d.programs)
		d.site = fmt.Sprintf("%d.%d.2.1", 11+i%40, i%80)
		if len(s.sites) <= i%80 {
			s.sites = append(s.sites, nil)
		}
		s.sites[i%80] = append(s.sites[i%80], d)
		s.home(d)
		s.devices = append(s.devices, d)
		s.enroll(start.Add(time.Duration(i)*time.Second), d)
		for p := range d.programs {
			s.connect(start.Add(time.Hour+time.Duration(i)*time.Second), d, p)
		}
	}
	for n := range steadyDays {
		day := start.Add(time.Duration(n+1) * 24 * time.Hour)
		for _, d := range s.devices {
			s.live(day, d)
		}
		s.incidents(n, day)
	}
	slices.SortStableFunc(s.list, func(a, b countersign.Event) int { return a.At.Compare(b.At) })
	for i := range s.list {
		s.list[i].Seq = int64(i + 1)
	}
	return s.list
}

// TestSteadyStoryIsSilent checks that a month of honest devices leads to no finding above
// info.
func TestSteadyStoryIsSilent(t *testing.T) {
	for seed := range uint64(2) {
		log := steadyStory(seed)
		m := newMachine(func(string) countersign.Usual { return countersign.Usual{} })
		kinds := map[countersign.EventType]int{}
		for i := range log {
			kinds[log[i].Type]++
			for _, f := range m.step(&log[i]) {
				if f.Severity != countersign.SeverityInfo {
					t.Errorf("seed %d, event %d, %s: %s about %s: %s %v", seed, i, f.At, f.Rule, f.Subject, f.Summary, f.Evidence)
				}
			}
		}
		t.Logf("seed %d: %d events: %v", seed, len(log), kinds)
		if len(log) < 100_000 {
			t.Errorf("the story has %d events only", len(log))
		}
	}
}

// TestAttackShowsInTheSteadyStory lets a thief use each tenth device of one busy day from
// another computer. It must be found among the other events.
func TestAttackShowsInTheSteadyStory(t *testing.T) {
	log := steadyStory(7)
	m := newMachine(func(string) countersign.Usual { return countersign.Usual{} })
	stolen, found := map[string]bool{}, map[string]bool{}
	see := func(e *countersign.Event) {
		for _, f := range m.step(e) {
			if f.Rule == IdentityChange && stolen[f.Device] {
				found[f.Device] = true
			} else if f.Severity != countersign.SeverityInfo && f.Rule != SharedCertificate && f.Rule != NewAddressCrowd && f.Rule != ClientIDConflict {
				t.Errorf("%s about %s: %s", f.Rule, f.Subject, f.Summary)
			}
		}
	}
	for i := range log {
		see(&log[i])
		if e := log[i]; i > 50_000 && i%500 == 0 && e.Type == countersign.SessionOpened && len(stolen) < 50 && !stolen[e.Device] {
			stolen[e.Device] = true
			see(&countersign.Event{
				Seq: e.Seq, At: e.At.Add(time.Second), Type: countersign.SessionOpened, Device: e.Device, Fleet: e.Fleet, Cert: e.Cert, Remote: "198.18.7.7:1",
				Data: map[string]string{"session": fmt.Sprint("thief-", i), "client_id": e.Device + "/x", "hello": fmt.Sprint("python ", i), "software": "paho"},
			})
		}
	}
	if len(stolen) < 20 || len(found) != len(stolen) {
		t.Errorf("found %d of %d stolen devices", len(found), len(stolen))
	}
}

func BenchmarkMachine(b *testing.B) {
	log := steadyStory(1)
	m := newMachine(func(string) countersign.Usual { return countersign.Usual{} })
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		m.step(&log[n%len(log)])
		n++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
