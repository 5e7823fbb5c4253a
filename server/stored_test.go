package server_test

import (
	"strings"
	"testing"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// keeper connects a client whose session is kept.
func keeper(t *testing.T, s *countersigntest.Server, id *sdk.Identity, client string) paho.Client {
	t.Helper()
	c := paho.NewClient(paho.NewClientOptions().AddBroker("ssl://" + strings.TrimPrefix(s.Endpoints().MQTT, "mqtts://")).
		SetClientID(client).SetCleanSession(false).SetProtocolVersion(4).SetTLSConfig(id.TLSConfig()).SetAutoReconnect(false).SetConnectTimeout(patience))
	done(t, c.Connect())
	return c
}

func done(t *testing.T, k paho.Token) {
	t.Helper()
	if !k.WaitTimeout(patience) || k.Error() != nil {
		t.Fatalf("no answer of the gateway: %v", k.Error())
	}
}

func usageOf(t *testing.T, a *sdk.Admin, device string) (list []api.Usage) {
	t.Helper()
	for u, err := range a.Usage(t.Context(), api.UsageFilter{Device: device}) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, u)
	}
	return list
}

// stock retains n messages as a device, subscribes, leaves a session behind and keeps
// another one open.
func stock(t *testing.T, s *countersigntest.Server, id *sdk.Identity, n int) {
	t.Helper()
	name := id.Device()
	left := keeper(t, s, id, name+"/left")
	done(t, left.Subscribe("devices/"+name+"/down/#", 1, nil))
	left.Disconnect(100)
	c := keeper(t, s, id, name)
	t.Cleanup(func() { c.Disconnect(100) })
	done(t, c.Subscribe("devices/"+name+"/down/a", 1, nil))
	for i := range n {
		done(t, c.Publish("devices/"+name+"/up/"+strings.Repeat("x", i+1), 1, true, "full"))
	}
	kit.Eventually(t, "the session is kept", func() bool { u := usageOf(t, s.Admin, name); return len(u) == 1 && u[0].Kept == 1 })
}

// TestOperatorsSeeAndPurgeWhatIsStored lets two devices store something and purges the
// greater one, kind by kind.
func TestOperatorsSeeAndPurgeWhatIsStored(t *testing.T) {
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		stock(t, other, asked.Enroll(t, "greedy"), 9)
		stock(t, other, asked.Enroll(t, "modest"), 2)
		admin := *other.Admin
		admin.PageSize = 1
		all := usageOf(t, &admin, "")
		if len(all) != 2 || all[0].Device != "greedy" || all[1].Device != "modest" {
			t.Fatalf("usage: got %+v, want greedy, then modest", all)
		}
		if u := all[0]; u.Retained != 9 || u.RetainedOctets == 0 || u.Octets < u.RetainedOctets || u.Subscriptions != 2 || u.Sessions != 1 || u.Kept != 1 {
			t.Errorf("usage of greedy: got %+v, want nine retained messages, two filters, a live and a kept session", u)
		}
		if m := scrape(t, other); !strings.Contains(m, "countersign_stored_retained_messages 11\n") || !strings.Contains(m, "countersign_stored_sessions 2\n") {
			t.Error("metrics: want 11 retained messages and 2 kept sessions")
		}
		for _, refused := range []struct {
			device string
			p      api.Purge
			code   countersign.Code
		}{
			{"greedy", api.Purge{}, countersign.BadRequest},
			{"nobody", api.Purge{Retained: true}, countersign.NotFound},
		} {
			if _, err := other.Admin.Purge(t.Context(), refused.device, refused.p); countersign.CodeOf(err) != refused.code {
				t.Errorf("purge %+v: got %v, want %s", refused, err, refused.code)
			}
		}
		p, err := other.Admin.Purge(t.Context(), "greedy", api.Purge{Retained: true, Note: "filled the store"})
		if err != nil || p.Retained != 9 || p.RetainedOctets != all[0].RetainedOctets || p.Sessions != 0 {
			t.Errorf("purge of retained messages: got %+v, %v, want the nine", p, err)
		}
		e := finds(t, asked, api.EventFilter{Type: string(countersign.DevicePurged), Device: "greedy"})
		if e.Data["what"] != "retained" || e.Data["retained"] != "9" || e.Reason != "filled the store" || !strings.HasPrefix(e.Actor, "operator:") {
			t.Errorf("event: got %+v", e)
		}
		if u := usageOf(t, other.Admin, "greedy"); len(u) != 1 || u[0].Retained != 0 || u[0].RetainedOctets != 0 || u[0].Kept != 1 || u[0].Sessions != 1 {
			t.Errorf("after the purge of retained messages: got %+v, want the sessions alone", u)
		}
		p, err = other.Admin.Purge(t.Context(), "greedy", api.Purge{Queued: true, Sessions: true})
		if err != nil || p.Sessions != 1 || p.Retained != 0 {
			t.Errorf("purge of sessions: got %+v, %v, want the kept one", p, err)
		}
		if u := usageOf(t, other.Admin, "greedy"); len(u) != 1 || u[0].Kept != 0 || u[0].Sessions != 1 || u[0].Subscriptions != 1 {
			t.Errorf("after the purge of sessions: got %+v, want the live one alone", u)
		}
		if u := usageOf(t, other.Admin, "modest"); len(u) != 1 || u[0].Retained != 2 || u[0].Kept != 1 {
			t.Errorf("of the other device: got %+v, want what it had", u)
		}
	})
}

// TestAPurgeIsOnRecordOrSaysSo cuts the database off before a purge, and loses the
// answer of the COMMIT of another.
func TestAPurgeIsOnRecordOrSaysSo(t *testing.T) {
	s := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres})
	stock(t, s, s.Enroll(t, "pump-1"), 3)
	s.Faults.Cut()
	if p, err := s.Admin.Purge(t.Context(), "pump-1", api.Purge{Retained: true}); countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("without a database: got %+v, %v, want unavailable", p, err)
	}
	s.Faults.Heal()
	kit.Eventually(t, "the database is back", func() bool { _, err := s.Admin.Device(t.Context(), "pump-1"); return err == nil })
	if u := usageOf(t, s.Admin, "pump-1"); len(u) != 1 || u[0].Retained != 3 {
		t.Errorf("after a purge that was refused: got %+v, want the three messages", u)
	}
	lost := s.Faults.LoseCommit("device.purged")
	if p, err := s.Admin.Purge(t.Context(), "pump-1", api.Purge{Retained: true}); err != nil || p.Retained != 3 {
		t.Errorf("with the answer of COMMIT lost: got %+v, %v, want the three messages", p, err)
	}
	select {
	case <-lost:
	default:
		t.Error("no COMMIT was lost")
	}
	finds(t, s, api.EventFilter{Type: string(countersign.DevicePurged), Device: "pump-1"})
}
