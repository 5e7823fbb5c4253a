package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

func holds(t *testing.T, s *countersigntest.Server) (list []api.Hold) {
	t.Helper()
	for h, err := range s.Admin.Holds(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, h)
	}
	return list
}

// eventsOf counts the events of a device by type.
func eventsOf(t *testing.T, s *countersigntest.Server, device string) map[string]int {
	t.Helper()
	n := map[string]int{}
	for e, err := range s.Admin.DeviceEvents(t.Context(), device, api.Order{}) {
		if err != nil {
			t.Fatal(err)
		}
		n[e.Type]++
	}
	return n
}

// TestActWithoutADatabaseHoldsTheDeviceBack asks for each act while the database is
// away. The answer is that it is not recorded, and what is in force; the session ends
// at once; the hold survives a restart of the node, and is recorded exactly once.
func TestActWithoutADatabaseHoldsTheDeviceBack(t *testing.T) {
	for _, a := range acts()[:3] {
		t.Run(a.name, func(t *testing.T) {
			s := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres})
			c, do := a.make(t, s, "pump-1")
			conn := c.open(t, s)
			s.Faults.Cut()
			_, err := do()
			if err == nil || !strings.Contains(err.Error(), "not recorded") || !strings.Contains(err.Error(), "this node alone: 1 live sessions of pump-1 were cut") {
				t.Errorf("the act: got %v, want what is recorded and what is in force", err)
			}
			endsWithin(t, "the asked node", conn, time.Second)
			if list := holds(t, s); len(list) != 1 || list[0].Device != "pump-1" || list[0].Act != a.name || list[0].State != "held" {
				t.Errorf("holds: got %+v", list)
			}
			if text := scrape(t, s); !strings.Contains(text, "countersign_holds 1") {
				t.Error("countersign_holds is not 1")
			}
			if _, code := c.dial(t, s); code == 0 {
				t.Error("connected although it is held back")
			}
			if a.name == "revoke" { // the hold is all that a restarted node has of it
				s.Stop()
				s.Faults.Heal()
				s.Restart(t)
			}
			s.Faults.Heal()
			for began := time.Now(); len(holds(t, s)) > 0; time.Sleep(50 * time.Millisecond) {
				if time.Since(began) > patience {
					t.Fatalf("not recorded: %+v", holds(t, s))
				}
			}
			if _, code := c.dial(t, s); code == 0 {
				t.Error("connected after the act was recorded")
			}
			n := eventsOf(t, s, "pump-1")
			if n["hold.placed"] != 1 || n["hold.recorded"] != 1 || n[a.event] != 1 {
				t.Errorf("events: got %v, want each of hold.placed, hold.recorded and %s once", n, a.event)
			}
		})
	}
}

// TestHoldKeepsADeviceOutWhileTheDatabaseIsReadOnly has a database that answers reads
// and records nothing, as a full one does: only the hold keeps the device out then. Dropped,
// the device is let back in.
func TestHoldKeepsADeviceOutWhileTheDatabaseIsReadOnly(t *testing.T) {
	s := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres})
	c := client{id: "pump-1", identity: s.Enroll(t, "pump-1")}
	conn := c.open(t, s)
	s.Faults.RefuseWrites()
	if _, err := s.Admin.Suspend(t.Context(), "pump-1", api.Act{Note: "seen twice"}); err == nil || !strings.Contains(err.Error(), "emergency hold") {
		t.Fatalf("suspend: got %v, want an emergency hold", err)
	}
	endsWithin(t, "the session", conn, time.Second)
	if _, code := c.dial(t, s); code != 5 {
		t.Errorf("CONNACK of a held device: got %d, want 5", code)
	}
	if err := c.identity.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "emergency hold") {
		t.Errorf("renewal of a held device: got %v, want it refused for the hold", err)
	}
	list := holds(t, s)
	if len(list) != 1 {
		t.Fatalf("holds: got %+v", list)
	}
	if _, err := s.Admin.RetryHold(t.Context(), list[0].ID); err == nil {
		t.Error("recorded in a database that records nothing")
	}
	if _, err := s.Admin.DropHold(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	c.open(t, s)
	s.Faults.Heal()
	for began := time.Now(); len(holds(t, s)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatal("the drop is not recorded")
		}
	}
	if n := eventsOf(t, s, "pump-1"); n["hold.dropped"] != 1 || n["device.suspended"] != 0 {
		t.Errorf("events: got %v, want that the hold was dropped and nothing suspended", n)
	}
}

// smallDisk mounts a file system that a server fits on, or skips the test where it may not.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	kit.SmallDisk(t, dir, "32m")
	return dir
}

// fill takes all the space that is left for path.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
}

// useUp writes as acts do that may use the reserve, until nothing is left of it.
func useUp(t *testing.T, db *store.DB) {
	t.Helper()
	for range 1000 {
		err := db.Write(store.Emergency(t.Context()), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO filler (octets) VALUES ($1)`, make([]byte, 256<<10))
			return err
		})
		if err != nil {
			return
		}
	}
	t.Fatal("the reserve has no end")
}

// TestHoldWhenTheReserveIsUsedUp has a full disk of whose reserve nothing is left. What
// cannot be recorded even then is held back by this node, also over a restart, and recorded
// once there is space.
func TestHoldWhenTheReserveIsUsedUp(t *testing.T) {
	dir := smallDisk(t)
	ballast := filepath.Join(dir, "ballast")
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) { c.Dir = filepath.Join(dir, "d") }})
	c, bystander := client{id: "pump-1", identity: s.Enroll(t, "pump-1")}, client{id: "pump-2", identity: s.Enroll(t, "pump-2")}
	conn, other := c.open(t, s), bystander.open(t, s)
	err := s.Database().Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TABLE filler (octets BLOB)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, ballast)
	useUp(t, s.Database())
	fill(t, ballast) // what the last try gave back
	_, err = s.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"})
	if err == nil || !strings.Contains(err.Error(), "not recorded") || !strings.Contains(err.Error(), "this node alone: 1 live sessions of pump-1 were cut") ||
		strings.Contains(err.Error(), "other nodes") || strings.Contains(err.Error(), "forgets it") {
		t.Fatalf("revoke: got %v, want a hold that is saved, and no word of nodes that there are not", err)
	}
	endsWithin(t, "the session", conn, time.Second)
	lives(t, "another device", other)
	if _, code := c.dial(t, s); code == 0 {
		t.Error("connected although it is held back")
	}
	s.Restart(t)
	if list := holds(t, s); len(list) != 1 || list[0].Device != "pump-1" || list[0].Act != "revoke" {
		t.Fatalf("holds after a restart on the full disk: got %+v", list)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); len(holds(t, s)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("not recorded: %+v", holds(t, s))
		}
	}
	if n := eventsOf(t, s, "pump-1"); n["hold.placed"] != 1 || n["hold.recorded"] != 1 || n["device.revoked"] != 1 {
		t.Errorf("events: got %v, want each of hold.placed, hold.recorded and device.revoked once", n)
	}
	probe := &tls.Config{RootCAs: s.Roots}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) { // a start on a full disk has no certificate to show yet
		conn, err := tls.Dial("tcp", s.Broker(t), probe)
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Since(began) > patience {
			t.Fatalf("no TLS although there is space: %v", err)
		}
	}
	if _, code := c.dial(t, s); code == 0 {
		t.Error("connected after the act was recorded")
	}
	bystander.open(t, s)
}

// TestEmergencyActsOnAFullDisk fills the disk and asks for each act that takes something
// away: the reserve is for all of them, and for nothing that gives.
func TestEmergencyActsOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) { c.Dir = filepath.Join(dir, "d") }})
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	kinds := []string{"certificate", "secret", "sas"}
	_, err := s.Admin.PutFleet(ctx, "default", api.PutFleet{AccessKinds: &kinds})
	must(err)
	certified := s.Enroll(t, "certified")
	token, err := s.Admin.CreateToken(ctx, api.NewToken{Uses: 10})
	must(err)
	browser, err := s.Admin.CreateAccessToken(ctx, api.NewAccessToken{Devices: []string{"certified"}})
	must(err)
	person, err := s.Admin.CreateOperatorToken(ctx, api.NewOperatorToken{Name: "line", Role: "operator", TTLSeconds: 3600})
	must(err)
	does := map[string]func() error{
		"revoke a certificate": func() error {
			_, err := s.Admin.RevokeCertificate(ctx, fmt.Sprintf("%x", certified.Certificate().SerialNumber), api.Revoke{Reason: "superseded"})
			return err
		},
		"stop a token":             func() error { _, err := s.Admin.StopCredential(ctx, token.ID, api.Act{}); return err },
		"revoke an access token":   func() error { _, err := s.Admin.RevokeAccessToken(ctx, browser.ID); return err },
		"revoke an operator token": func() error { _, err := s.Admin.RevokeOperatorToken(ctx, person.ID); return err },
		"block an address": func() error {
			_, err := s.Admin.Block(ctx, api.NewBlock{Network: "203.0.113.7/32", TTLSeconds: 3600})
			return err
		},
	}
	conns := map[string]net.Conn{}
	for i, a := range acts() {
		c, do := a.make(t, s, fmt.Sprintf("pump-%d", i))
		conns[a.name] = c.open(t, s)
		does[a.name] = func() error { _, err := do(); return err }
	}
	fill(t, filepath.Join(dir, "ballast"))
	for name, act := range does {
		if err := act(); err != nil {
			t.Errorf("%s on a full disk: %v", name, err)
		}
		if conn, live := conns[name]; live {
			endsWithin(t, name, conn, time.Second)
		}
	}
	if list := holds(t, s); len(list) != 0 {
		t.Errorf("held although it is recorded: %+v", list)
	}
	if _, err := s.Admin.CreateToken(ctx, api.NewToken{}); err == nil {
		t.Error("a token was made from the reserve")
	}
}
