package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/store/storetest"
)

// TestNothingOfAFormerLifeIsLeft lets a device leave a session, a queue, half a message of
// QoS 2 and retained messages. When the answer to its end is there, the server is killed:
// the database has nothing of them, a new subscriber finds nothing, and the device that
// enrolls again neither.
func TestNothingOfAFormerLifeIsLeft(t *testing.T) {
	for _, end := range []string{"revoke", "retire"} {
		t.Run(end+", sqlite", func(t *testing.T) {
			t.Parallel()
			k := newTalk(t, "", "witness", "gone", "reader")
			former(t, k, k, end, "sqlite:"+filepath.Join(k.dir, "countersign.db"))
		})
		t.Run(end+", postgres", func(t *testing.T) {
			t.Parallel()
			url := storetest.PostgresURL(t)
			k := newTalk(t, "database: "+url, "witness", "gone", "reader")
			former(t, k, k, end, url)
		})
		t.Run(end+", asked another node", func(t *testing.T) {
			t.Parallel()
			url := storetest.PostgresURL(t)
			asked := newTalk(t, "engine: {node: a}\ndatabase: "+url, "witness", "gone", "reader")
			former(t, asked, beside(t, asked, "engine: {node: b}\ndatabase: "+url), end, url)
		})
	}
}

// beside starts a further node on the database of another, with its keys.
func beside(t *testing.T, first *talk, more string) *talk {
	t.Helper()
	dir := shortDir(t)
	k := prepare(t, dir, more)
	if err := os.CopyFS(filepath.Join(dir, "keys"), os.DirFS(filepath.Join(first.dir, "keys"))); err != nil {
		t.Fatal(err)
	}
	k.ids, k.files = first.ids, first.files
	k.start()
	return k
}

// former ends the device on one node while all that it has is on another, or the same.
func former(t *testing.T, asked, k *talk, end, database string) {
	live := leaveAll(t, k)
	args := []string{"device", end, "gone", "--yes", "--dir", asked.dir}
	if end == "revoke" {
		args = append(args, "--reason", "keyCompromise")
	}
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("device %s: %v\n%s", end, err, out)
	}
	k.kill()
	if asked != k {
		asked.kill()
	}
	_ = live.Close()
	t.Run("record", func(t *testing.T) { // its end closes the database, which the server opens next
		if rows := stored(t, database); len(rows) > 0 {
			t.Errorf("after the answer to %s the database has %v", end, rows)
		}
	})
	k.start()
	found := map[string]string{}
	if err := k.look(found); err != nil {
		t.Fatal(err)
	}
	if len(found) > 0 {
		t.Errorf("a new subscriber found %v retained", found)
	}
	if _, err := k.dial("gone", kept("gone", false)); err == nil {
		t.Errorf("the device connects after %s", end)
	}
	if end != "retire" { // a retired device does not come again
		comesAgain(t, k)
	}
}

// leaveAll has the device leave everything that a broker may keep of one, and returns a
// connection that lives.
func leaveAll(t *testing.T, k *talk) *wire {
	t.Helper()
	must := func(c *wire, err error) *wire {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	left := must(k.dial("gone", kept("gone/left", false)))
	check(left.subscribe(sub("talk/gone/#", 2)))
	check(left.publish("state/gone/1", "former", true))
	check(left.publish("state/gone/2", "former", true))
	half := &packets.Publish{Topic: "talk/half", Payload: []byte("0"), QoS: 2, PacketID: 7, Properties: &packets.Properties{}}
	check(left.send(half))
	if p, err := packets.ReadPacket(left); err != nil || p.Type != packets.PUBREC {
		t.Fatalf("PUBLISH with QoS 2: got %v, %v, want PUBREC", p, err)
	}
	_ = left.Close()
	live := must(k.dial("gone", kept("gone", false)))
	check(live.subscribe(sub("talk/gone/#", 1)))
	witness := must(k.dial("witness", &packets.Connect{CleanStart: true}))
	for range 3 {
		check(witness.publish("talk/gone/x", "0", false)) // the live one does not acknowledge either
	}
	_ = witness.Close()
	return live
}

// stored counts the rows of the broker core in a database whose servers were killed. All
// other devices have left nothing.
func stored(t *testing.T, database string) (list []string) {
	t.Helper()
	db := storetest.OpenURL(t, database)
	for _, table := range []string{"mqtt_session", "mqtt_subscription", "mqtt_queue", "mqtt_mark", "mqtt_inbound", "mqtt_retained"} {
		var n int
		if err := db.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			list = append(list, fmt.Sprintf("%d rows of %s", n, table))
		}
	}
	return list
}

// comesAgain enrolls the device again: it finds nothing, and starts as a new one does.
func comesAgain(t *testing.T, k *talk) {
	t.Helper()
	k.enroll("gone")
	for _, client := range []string{"gone", "gone/left"} {
		c, err := k.dial("gone", kept(client, false))
		if err != nil {
			t.Fatal(err)
		}
		if c.connack.SessionPresent {
			t.Errorf("%s: got Session Present 1, want 0", client)
		}
		witness, err := k.dial("witness", &packets.Connect{CleanStart: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := witness.publish("talk/gone/x", "later", false); err != nil {
			t.Fatal(err)
		}
		_ = witness.Close()
		// PINGRESP comes after what the server had for the client.
		if err := c.send(&packets.Pingreq{}); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if p, err := packets.ReadPacket(c); err != nil || p.Type != packets.PINGRESP {
			t.Errorf("%s: got %v, %v, want nothing but PINGRESP", client, p, err)
		}
		_ = c.Close()
	}
}
