package simulate_test

import (
	"slices"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/simulate"
)

func options(t *testing.T, s *countersigntest.Server) simulate.Options {
	return simulate.Options{
		Admin: s.Admin, Endpoints: s.Endpoints(), Roots: s.Roots, Devices: 10, Duration: simulate.MinDuration, Seed: 1,
		Stories: []string{"steady", "herd", "clone", "fork", "brute-force", "offline"}, Progress: t.Logf, Now: time.Now,
	}
}

func TestRunTellsWhatTheServerNoticed(t *testing.T) {
	s := countersigntest.Start(t)
	r, err := simulate.Run(t.Context(), options(t, s))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, story := range r.Stories {
		if story.Error != "" {
			t.Errorf("story %s: %s", story.Name, story.Error)
		}
		if story.Unharmed != story.Attacked {
			t.Errorf("story %s: %d of %d devices went on working", story.Name, story.Unharmed, story.Attacked)
		}
		if (story.Name == "offline") != (story.Skipped != "") {
			t.Errorf("story %s: skipped %q", story.Name, story.Skipped)
		}
		for _, e := range story.Expected {
			if found[e.Rule] = e.Found; e.Found != e.Subjects || e.P50 <= 0 || e.Max < e.P50 {
				t.Errorf("story %s: %+v", story.Name, e)
			}
		}
	}
	for _, rule := range []string{"client_id_conflict", "renewal_fork", "wrong_secret", "address_blocked"} {
		if found[rule] == 0 {
			t.Errorf("%s found nothing", rule)
		}
	}
	if len(r.FalseAlarms) > 0 {
		t.Errorf("false alarms: %+v", r.FalseAlarms)
	}
	if r.Herd == nil || r.Herd.Devices == 0 || r.Herd.Back != r.Herd.Devices || r.Steady.Messages == 0 {
		t.Errorf("herd %+v, steady %+v", r.Herd, r.Steady)
	}
	if r.Failed() {
		t.Error("the report says that it failed")
	}
	nothingLeft(t, s)
}

// nothingLeft checks what a simulation leaves behind.
func nothingLeft(t *testing.T, s *countersigntest.Server) {
	t.Helper()
	devices := 0
	for d, err := range s.Admin.Devices(t.Context(), api.DeviceFilter{}) {
		if devices++; err != nil || d.State != string(countersign.DeviceRetired) {
			t.Fatalf("device %s is %s, %v", d.ID, d.State, err)
		}
	}
	if devices == 0 {
		t.Error("there are no devices at all")
	}
	for b, err := range s.Admin.Blocks(t.Context()) {
		t.Errorf("%s is still blocked, %v", b.Network, err)
	}
	for a, err := range s.Admin.Alerts(t.Context(), api.AlertFilter{State: "live"}) {
		t.Errorf("the alert %s about %s is still %s, %v", a.Rule, a.Subject, a.State, err)
	}
}

func TestRunTouchesOnlyWhatIsMarked(t *testing.T) {
	s := countersigntest.Start(t)
	for name, change := range map[string]func(*simulate.Options){
		"a fleet without the mark": func(o *simulate.Options) { o.Fleet = "pumps" },
		"a fleet that exists":      func(o *simulate.Options) { o.Fleet = "sim-there" },
		"no such story":            func(o *simulate.Options) { o.Stories = []string{"happy-end"} },
		"no devices":               func(o *simulate.Options) { o.Devices = 0 },
		"too short":                func(o *simulate.Options) { o.Duration = time.Second },
		"no gateway":               func(o *simulate.Options) { o.Endpoints.MQTT = "" },
	} {
		o := options(t, s)
		if change(&o); o.Fleet == "sim-there" {
			if _, err := s.Admin.PutFleet(t.Context(), o.Fleet, api.PutFleet{}); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := simulate.Run(t.Context(), o); err == nil || r != nil {
			t.Errorf("%s: got %v, %v", name, r, err)
		}
	}
	for d, err := range s.Admin.Devices(t.Context(), api.DeviceFilter{}) {
		t.Errorf("a device was made: %s, %v", d.ID, err)
	}
}

func TestFailedSeesEachShortcoming(t *testing.T) {
	good := func() *simulate.Report {
		return &simulate.Report{Herd: &simulate.HerdReport{Devices: 2, Back: 2}, Stories: []simulate.StoryReport{
			{Attacked: 1, Unharmed: 1, Expected: []simulate.ExpectedFinding{{Subjects: 2, Found: 2}}}, {Skipped: "too short"},
		}}
	}
	if good().Failed() {
		t.Error("a good report failed")
	}
	for name, spoil := range map[string]func(*simulate.Report){
		"missed":      func(r *simulate.Report) { r.Stories[0].Expected[0].Found = 1 },
		"harmed":      func(r *simulate.Report) { r.Stories[0].Unharmed = 0 },
		"error":       func(r *simulate.Report) { r.Stories[1].Error = "x" },
		"false alarm": func(r *simulate.Report) { r.FalseAlarms = make([]simulate.FindingReport, 1) },
		"not back":    func(r *simulate.Report) { r.Herd.Back = 1 },
	} {
		r := good()
		if spoil(r); !r.Failed() {
			t.Errorf("%s: the report did not fail", name)
		}
	}
}

func TestStoriesHaveNamesOfTheirOwn(t *testing.T) {
	names := slices.Sorted(slices.Values(simulate.StoryNames()))
	if len(slices.Compact(names)) != len(simulate.StoryNames()) || !slices.Contains(names, "steady") {
		t.Errorf("StoryNames: got %q", simulate.StoryNames())
	}
}
