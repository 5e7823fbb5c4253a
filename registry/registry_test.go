package registry_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// house is a registry with its database and clock.
type house struct {
	*registry.Registry
	now time.Time
}

// failer is what a test and a property have in common.
type failer interface {
	kit.TB
	Context() context.Context
}

// open gives a registry that knows the fleets default and other.
func open(t failer, db *store.DB) *house {
	t.Helper()
	h := &house{now: start}
	h.Registry = &registry.Registry{DB: db, Now: func() time.Time { return h.now }}
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		for _, q := range []string{
			`INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ('issuing', 'issuing', '', $1, '', 'active', 0)`,
			`INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ('old', 'issuing', '', $1, '', 'retired', 0)`,
			`INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ('root', 'root', '', $1, '', 'active', 0)`,
		} {
			if _, err := tx.Exec(ctx, q, []byte{}); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO profile (name, spec, created_at, updated_at) VALUES ('device', '{}', 0, 0)`)
		if err != nil {
			return err
		}
		for _, name := range []string{"default", "other"} {
			if err := h.SaveFleet(ctx, tx, fleet(name)); err != nil {
				return err
			}
		}
		return nil
	})
	return h
}

func fleet(name string) countersign.Fleet {
	return countersign.Fleet{Name: name, Issuer: "issuing", Profile: "device", Methods: []countersign.Method{"token"}, Overlap: time.Hour}
}

func (h *house) write(t failer, fn func(ctx context.Context, tx *store.Tx) error) {
	t.Helper()
	if err := h.DB.Write(t.Context(), fn); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

func (h *house) create(t failer, d countersign.Device) {
	t.Helper()
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Create(ctx, tx, d) })
}

func (h *house) device(t failer, id string) registry.Entry {
	t.Helper()
	e, err := h.Device(t.Context(), h.DB, id)
	if err != nil {
		t.Fatalf("Device: %v", err)
	}
	return e
}

func registered(id string) countersign.Device {
	return countersign.Device{ID: id, Fleet: "default", State: countersign.DeviceRegistered}
}

// life is the table of a device's states, as DESIGN and the documentation tell it.
var life = map[countersign.DeviceState]string{
	countersign.DeviceRegistered: "pending active suspended retired",
	countersign.DevicePending:    "registered active retired",
	countersign.DeviceActive:     "registered suspended retired",
	countersign.DeviceSuspended:  "registered active retired",
	countersign.DeviceRetired:    "",
}

// TestDeviceLife does random moves. Each in the table leaves the row as it says,
// each other is a Conflict that changes nothing, and nothing leads out of retired.
func TestDeviceLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		states := []countersign.DeviceState{
			countersign.DeviceRegistered, countersign.DevicePending, countersign.DeviceActive, countersign.DeviceSuspended, countersign.DeviceRetired, "made-up",
		}
		n := 0
		rapid.Check(t, func(t *rapid.T) {
			n++
			id := fmt.Sprintf("device-%d", n)
			h.create(t, registered(id))
			want := h.device(t, id)
			for range rapid.IntRange(1, 12).Draw(t, "moves") {
				h.now = h.now.Add(time.Second)
				to := rapid.SampledFrom(states).Draw(t, "to")
				reason := rapid.StringOfN(rapid.RuneFrom([]rune("aü\x00\ufffd")), 0, 600, -1).Draw(t, "reason")
				allowed := slices.Contains(strings.Fields(life[want.State]), string(to))
				got := want
				err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					got = want
					return h.Move(ctx, tx, &got, to, reason)
				})
				if allowed && err != nil || !allowed && countersign.CodeOf(err) != countersign.Conflict {
					t.Fatalf("%s to %s: got %v, want allowed %v", want.State, to, err, allowed)
				}
				if allowed {
					if len(got.Reason) > 512 || !utf8.ValidString(got.Reason) {
						t.Fatalf("reason: got %d octets %q", len(got.Reason), got.Reason)
					}
					waited := want.State == countersign.DevicePending
					want.State, want.Reason, want.UpdatedAt = to, got.Reason, h.now
					if to == countersign.DeviceRetired || to == countersign.DeviceRegistered && !waited {
						want.RevokedAt = h.now
						want.RevokedPos = 1 // of an empty log
					}
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("returned (-want +got):\n%s", d)
				}
				if d := cmp.Diff(want, h.device(t, id)); d != "" {
					t.Fatalf("on record (-want +got):\n%s", d)
				}
			}
		})
	})
}

func TestMoveRefusesStaleView(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		h.create(t, registered("pump-1"))
		e := h.device(t, "pump-1")
		stale := e
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.Move(ctx, tx, &e, countersign.DeviceRetired, "")
		})
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return h.Move(ctx, tx, &stale, countersign.DeviceActive, "")
		})
		kit.WantCode(t, err, countersign.Conflict)
	})
}

func TestCreateIsBounded(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		tags := func(n int) map[string]string {
			m := map[string]string{}
			for i := range n {
				m[fmt.Sprintf("k%d", i)] = strings.Repeat("v", 256)
			}
			return m
		}
		full := registered("full")
		full.Owner, full.Reason, full.Tags = strings.Repeat("o", 512), strings.Repeat("r", 512), tags(64)
		h.create(t, full)
		got := h.device(t, "full")
		full.CreatedAt, full.UpdatedAt = start, start
		if d := cmp.Diff(full, got.Device); d != "" {
			t.Errorf("Device (-want +got):\n%s", d)
		}
		for name, change := range map[string]func(*countersign.Device){
			"no id":              func(d *countersign.Device) { d.ID = "" },
			"id too long":        func(d *countersign.Device) { d.ID = strings.Repeat("a", 129) },
			"id with a slash":    func(d *countersign.Device) { d.ID = "a/b" },
			"long owner":         func(d *countersign.Device) { d.Owner = strings.Repeat("o", 513) },
			"owner not UTF-8":    func(d *countersign.Device) { d.Owner = "\xff" },
			"owner with NUL":     func(d *countersign.Device) { d.Owner = "a\x00" },
			"long reason":        func(d *countersign.Device) { d.Reason = strings.Repeat("r", 513) },
			"too many tags":      func(d *countersign.Device) { d.Tags = tags(65) },
			"tag without a name": func(d *countersign.Device) { d.Tags = map[string]string{"": "v"} },
			"long tag name":      func(d *countersign.Device) { d.Tags = map[string]string{strings.Repeat("k", 257): "v"} },
			"long tag":           func(d *countersign.Device) { d.Tags = map[string]string{"k": strings.Repeat("v", 257)} },
			"tag not UTF-8":      func(d *countersign.Device) { d.Tags = map[string]string{"k": "\xff"} },
		} {
			d := registered("other")
			change(&d)
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Create(ctx, tx, d) })
			if countersign.CodeOf(err) != countersign.BadRequest {
				t.Errorf("%s: got %v, want bad_request", name, err)
			}
		}
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Create(ctx, tx, registered("full")) })
		kit.WantCode(t, err, countersign.Conflict)
		_, err = h.Device(t.Context(), db, "nobody")
		kit.WantCode(t, err, countersign.NotFound)
	})
}

// TestCreateRaces has two create the same device at once: one wins.
func TestCreateRaces(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		const at = 8
		errs := make(chan error, at)
		for range at {
			go func() {
				errs <- db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Create(ctx, tx, registered("pump-1")) })
			}()
		}
		won := 0
		for range at {
			if err := <-errs; err == nil {
				won++
			} else if countersign.CodeOf(err) != countersign.Conflict {
				t.Errorf("Create: got %v, want conflict", err)
			}
		}
		if won != 1 {
			t.Errorf("%d created the same device, want 1", won)
		}
	})
}

// TestDevicesSortByOctets pages through ids that people's languages sort otherwise:
// without regard to case and punctuation. Both databases must agree with Go.
func TestDevicesSortByOctets(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		ids := []string{
			"a", "B", "b0", "a-1", "A1", "a.1", "a:1", "a_1", "_a", ".a", ":a", "a-b", "aB", "Ab0", "AB1", "Z", "z0", "z9", "Y9", "0", "9",
		}
		for i, id := range ids {
			d := registered(id)
			if i%3 == 0 {
				d.Fleet = "other"
			}
			if i%2 == 0 {
				d.State = countersign.DeviceActive
			}
			h.create(t, d)
		}
		list := func(f registry.Filter) (got []string) {
			t.Helper()
			for range 100 {
				page, next, err := h.Devices(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range page {
					got = append(got, d.ID)
				}
				if next == "" {
					return got
				}
				f.After = next
			}
			t.Fatal("the list has no end")
			return nil
		}
		want := func(f registry.Filter) (want []string) {
			for i, id := range ids {
				if strings.HasPrefix(id, f.Prefix) && (f.Fleet == "" || i%3 == 0) && (f.State == "" || i%2 == 0) {
					want = append(want, id)
				}
			}
			slices.Sort(want)
			return want
		}
		for _, limit := range []int{1, 3, len(ids), 0, -1, 1 << 30} {
			f := registry.Filter{Limit: limit}
			if d := cmp.Diff(want(f), list(f)); d != "" {
				t.Errorf("limit %d (-want +got):\n%s", limit, d)
			}
		}
		for _, prefix := range []string{"a", "A", "a-", "aB", "_", ".", "Z", "z", "nothing"} {
			f := registry.Filter{Prefix: prefix, Limit: 2}
			if d := cmp.Diff(want(f), list(f)); d != "" {
				t.Errorf("prefix %q (-want +got):\n%s", prefix, d)
			}
		}
		for _, f := range []registry.Filter{
			{Fleet: "other", Limit: 2}, {State: countersign.DeviceActive, Limit: 2}, {Fleet: "other", State: countersign.DeviceActive, Prefix: "a", Limit: 1},
		} {
			if d := cmp.Diff(want(f), list(f)); d != "" {
				t.Errorf("%+v (-want +got):\n%s", f, d)
			}
		}
	})
}

func TestSawGoesForwardOnly(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		h.create(t, registered("pump-1"))
		saw := func(seconds int, addr string) {
			t.Helper()
			h.write(t, func(ctx context.Context, tx *store.Tx) error {
				return h.Saw(ctx, tx, []registry.Sighting{
					{Device: "nobody", At: start, Addr: "x"}, {Device: "pump-1", At: start.Add(time.Duration(seconds) * time.Second), Addr: addr},
				})
			})
		}
		for _, tt := range []struct {
			at   int
			addr string
			want string
		}{{5, "first", "first"}, {3, "earlier", "first"}, {5, "same time", "first"}, {6, "later", "later"}} {
			saw(tt.at, tt.addr)
			if got := h.device(t, "pump-1"); got.LastAddr != tt.want {
				t.Errorf("seen %s: got %s at %v, want %s", tt.addr, got.LastAddr, got.LastSeen, tt.want)
			}
		}
	})
}

// TestSawTogether has nodes record the same devices in opposite orders at once.
func TestSawTogether(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		var seen []registry.Sighting
		for i := range 40 {
			id := fmt.Sprintf("device-%d", i)
			h.create(t, registered(id))
			seen = append(seen, registry.Sighting{Device: id, Addr: "192.0.2.1:5"})
		}
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for round := range 10 {
					mine := slices.Clone(seen)
					for i := range mine {
						mine[i].At = start.Add(time.Duration(round*4+w) * time.Second)
					}
					if w%2 == 1 {
						slices.Reverse(mine)
					}
					err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Saw(ctx, tx, mine) })
					if err != nil {
						t.Errorf("Saw: %v", err)
					}
				}
			})
		}
		wg.Wait()
		if got := h.device(t, "device-39"); !got.LastSeen.Equal(start.Add(39 * time.Second)) {
			t.Errorf("LastSeen: got %v, want the latest, %v", got.LastSeen, start.Add(39*time.Second))
		}
	})
}

func TestSaveFleet(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		h.now = start.Add(time.Hour)
		f := fleet("default")
		f.Overlap, f.TrustDomain, f.Methods = 48*time.Hour, "example.net", nil
		h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.SaveFleet(ctx, tx, f) })
		f.CreatedAt, f.UpdatedAt = start, h.now
		got, err := h.Fleet(t.Context(), db, "default")
		if d := cmp.Diff(f, got); err != nil || d != "" {
			t.Errorf("Fleet (-want +got): %v\n%s", err, d)
		}
		list, err := h.Fleets(t.Context())
		if err != nil || len(list) != 2 || list[0].Name != "default" || list[1].Name != "other" {
			t.Errorf("Fleets: got %v, %v", list, err)
		}
		_, err = h.Fleet(t.Context(), db, "nobody")
		kit.WantCode(t, err, countersign.NotFound)
		for name, change := range map[string]func(*countersign.Fleet){
			"name":               func(f *countersign.Fleet) { f.Name = "No Name" },
			"unknown issuer":     func(f *countersign.Fleet) { f.Issuer = "nobody" },
			"a root as issuer":   func(f *countersign.Fleet) { f.Issuer = "root" },
			"a retired issuer":   func(f *countersign.Fleet) { f.Issuer = "old" },
			"unknown profile":    func(f *countersign.Fleet) { f.Profile = "nobody" },
			"negative overlap":   func(f *countersign.Fleet) { f.Overlap = -1 },
			"endless overlap":    func(f *countersign.Fleet) { f.Overlap = 91 * 24 * time.Hour },
			"bad trust domain":   func(f *countersign.Fleet) { f.TrustDomain = "Example.net/x" },
			"unknown method":     func(f *countersign.Fleet) { f.Methods = []countersign.Method{"token", "magic"} },
			"renewal as a first": func(f *countersign.Fleet) { f.Methods = []countersign.Method{"certificate"} },
		} {
			f := fleet("new")
			change(&f)
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.SaveFleet(ctx, tx, f) })
			if countersign.CodeOf(err) != countersign.BadRequest {
				t.Errorf("%s: got %v, want bad_request", name, err)
			}
		}
	})
}
