package server_test

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/countersigntest/baddevice"
	"github.com/countersign-iot/countersign/sdk"
)

const (
	// slowerBy is how much longer a healthy device may wait during an attack than before,
	// and waitFloor what it may wait in any case: the server, the attacker and the other
	// tests of the machine share its processors.
	slowerBy  = 20
	waitFloor = 3 * time.Second
	// costs is what the server may hold in memory for one bad device, and stores what it
	// may have on disk for it: more than all budgets of a device together, and a small
	// part of what the attacks took before there were budgets (0.3 to 3 GB).
	costs  = 96 << 20
	stores = 48 << 20
)

// waits are how long a healthy device waited.
type waits struct{ connect, request []time.Duration }

// at returns the p-th percentile.
func at(all []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)-1)*p/100]
}

func (w waits) String() string {
	return fmt.Sprintf("connect p99 %v, worst %v of %d; request p99 %v, worst %v of %d",
		at(w.connect, 99), at(w.connect, 100), len(w.connect), at(w.request, 99), at(w.request, 100), len(w.request))
}

// healthy are a few devices that connect anew and ask a service of the operator's.
type healthy struct {
	*countersigntest.Server
	ids []*sdk.Identity
	n   int
	bad atomic.Int64 // messages that the bad device has published
}

func newHealthy(t *testing.T, s *countersigntest.Server) *healthy {
	t.Helper()
	h := &healthy{Server: s}
	for i := range 5 { // so many that none of them exceeds its own budget of events
		h.ids = append(h.ids, s.Enroll(t, fmt.Sprintf("healthy-%d", i)))
	}
	err := s.Subscribe(t.Context(), "devices/+/up/question", func(topic string, payload []byte) {
		device := strings.Split(topic, "/")[1]
		go func() { _ = s.Publish(context.WithoutCancel(t.Context()), "devices/"+device+"/down/answer", payload) }()
	})
	if err == nil {
		err = s.Subscribe(t.Context(), "devices/bad/up/#", func(string, []byte) { h.bad.Add(1) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// once connects one of the devices and has it ask some times.
func (h *healthy) once(t *testing.T, w *waits) {
	t.Helper()
	id := h.ids[h.n%len(h.ids)]
	h.n++
	name, answers := id.Device(), make(chan string, 10)
	began := time.Now()
	c := paho.NewClient(paho.NewClientOptions().AddBroker("ssl://" + h.Broker(t)).SetClientID(name).SetProtocolVersion(4).
		SetTLSConfig(id.TLSConfig()).SetAutoReconnect(false).SetConnectTimeout(patience).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { answers <- string(m.Payload()) }))
	done(t, c.Connect())
	w.connect = append(w.connect, time.Since(began))
	defer c.Disconnect(0)
	done(t, c.Subscribe("devices/"+name+"/down/answer", 1, nil))
	for i := range 8 {
		question := fmt.Sprint(h.n, i)
		began := time.Now()
		done(t, c.Publish("devices/"+name+"/up/question", 1, false, question))
		select {
		case got := <-answers:
			if got != question {
				t.Errorf("answer of the service: got %q, want %q", got, question)
			}
		case <-time.After(patience):
			t.Fatal("the service's answer did not arrive")
		}
		w.request = append(w.request, time.Since(began))
	}
}

// spent is what the server holds in memory and on disk.
func spent(t *testing.T, s *countersigntest.Server) (memory, disk int64) {
	t.Helper()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	err := filepath.WalkDir(s.Dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // files come and go
		}
		if i, err := e.Info(); err == nil {
			disk += i.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return int64(m.HeapAlloc + m.StackInuse), disk
}

// TestOneBadDeviceTakesNothingFromTheOthers has one enrolled device misbehave in each
// way of the kit while healthy ones connect and ask.
func TestOneBadDeviceTakesNothingFromTheOthers(t *testing.T) {
	for _, b := range baddevice.Behaviors() {
		t.Run(b.Name, func(t *testing.T) {
			misbehave(t, b)
		})
	}
}

func misbehave(t *testing.T, b baddevice.Behavior) {
	t.Helper()
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) { c.Limits.ConnectTimeout = 5 * time.Second }})
	h := newHealthy(t, s)
	id := s.Enroll(t, "bad")
	d := &baddevice.Device{
		Name: "bad", Broker: s.Broker(t), Renew: s.Endpoints().Enroll + api.Base + "/renew", TLS: id.TLSConfig(), From: net.IPv4(127, 0, 0, 9),
		Send: s.Publish,
	}
	var before, during waits
	for range 20 {
		h.once(t, &before)
	}
	memory, disk := spent(t, s)
	ctx, stop := context.WithTimeout(t.Context(), b.Takes)
	defer stop()
	over := make(chan error, 1)
	go func() { over <- b.Run(ctx, d) }()
	var mostMemory, mostDisk int64
	for pause := b.Takes / 25; ctx.Err() == nil; time.Sleep(pause) {
		h.once(t, &during)
		m, d := spent(t, s)
		mostMemory, mostDisk = max(mostMemory, m-memory), max(mostDisk, d-disk)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	t.Logf("before: %v", before)
	t.Logf("during: %v", during)
	t.Logf("%d KiB of memory, %d KiB on disk, %d messages; answers %v", mostMemory>>10, mostDisk>>10, h.bad.Load(), d.Answers())
	checkWaits(t, before, during)
	if mostMemory > costs || mostDisk > stores {
		t.Errorf("the device cost %d MiB of memory and %d MiB on disk, want at most %d and %d", mostMemory>>20, mostDisk>>20, costs>>20, stores>>20)
	}
	if n, most := h.bad.Load(), int64(countersign.DefaultPublishes)*(int64(b.Takes/time.Second)+3); n > most {
		t.Errorf("%d messages of the device were passed on within %v, want at most %d", n, b.Takes, most)
	}
	for _, want := range b.Answers {
		if d.Answers()[want] == 0 {
			t.Errorf("the device was never answered %q: %v", want, d.Answers())
		}
	}
	checkNamed(t, s, b)
	if b.Budget == countersign.BudgetUnread { // its DISCONNECT cannot reach who does not read
		e := finds(t, s, api.EventFilter{Type: string(countersign.SessionClosed), Device: "bad"})
		if e.Code != string(countersign.EndBudget) {
			t.Errorf("its last session was closed as %q, want %q", e.Code, countersign.EndBudget)
		}
	}
}

func checkWaits(t *testing.T, before, during waits) {
	t.Helper()
	for _, p := range []int{99, 100} {
		for what, w := range map[string][2][]time.Duration{"connection": {before.connect, during.connect}, "request": {before.request, during.request}} {
			was, is := at(w[0], p), at(w[1], p)
			if most := max(waitFloor, slowerBy*was); is > most {
				t.Errorf("%d of 100 took a healthy device's %s within %v during the attack and %v before, want at most %v", p, what, is, was, most)
			}
		}
	}
}

// checkNamed looks for the event and the alert that name the device, and for none that
// name a healthy one.
func checkNamed(t *testing.T, s *countersigntest.Server, b baddevice.Behavior) {
	t.Helper()
	if b.Budget == "" {
		return
	}
	within(t, "budget.exceeded of "+b.Budget, func() bool {
		for e, err := range s.Admin.Events(t.Context(), api.EventFilter{Type: string(countersign.BudgetExceeded)}, api.Order{}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Device != "bad" {
				t.Fatalf("%s exceeded a budget: %v", e.Device, e.Data)
			}
			if e.Data["budget"] == b.Budget {
				return true
			}
		}
		return false
	})
	within(t, "the alert", func() bool {
		for _, a := range alerts(t, s, api.AlertFilter{}) {
			if a.Rule == "budget_exceeded" && strings.Contains(a.Subject, "bad") {
				return true
			}
		}
		return false
	})
}
