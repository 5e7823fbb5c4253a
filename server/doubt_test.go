package server_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// client is how a device comes in.
type client struct {
	id, user, password string
	identity           *sdk.Identity    // nil: without a certificate of ours
	factory            *tls.Certificate // a manufacturer's; nil: none
}

// dial opens an MQTT 3.1.1 session by hand and returns the code of CONNACK.
func (c client) dial(t *testing.T, s *countersigntest.Server) (net.Conn, byte) {
	t.Helper()
	config := &tls.Config{RootCAs: s.Roots}
	if c.identity != nil {
		config = c.identity.TLSConfig()
	}
	if c.factory != nil {
		config.Certificates = []tls.Certificate{*c.factory}
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", s.Broker(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	text := func(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }
	flags, payload := byte(2), text(c.id)
	if c.user != "" {
		flags |= 0xc0
		payload = append(append(payload, text(c.user)...), text(c.password)...)
	}
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 60}, payload...)
	packet := []byte{0x10}
	for n := len(body); ; n /= 128 {
		if n < 128 {
			packet = append(packet, byte(n))
			break
		}
		packet = append(packet, byte(n%128)|0x80)
	}
	if _, err := conn.Write(append(packet, body...)); err != nil {
		t.Fatal(err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		t.Fatal(err)
	}
	return conn, ack[3]
}

func (c client) open(t *testing.T, s *countersigntest.Server) net.Conn {
	t.Helper()
	conn, code := c.dial(t, s)
	if code != 0 {
		t.Fatalf("CONNACK of %s: got %d, want 0", c.id, code)
	}
	return conn
}

// endsWithin wants a session to be ended by the server.
func endsWithin(t *testing.T, what string, conn net.Conn, bound time.Duration) {
	t.Helper()
	began := time.Now()
	if err := conn.SetReadDeadline(began.Add(bound)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	if netErr, ok := err.(net.Error); err == nil || ok && netErr.Timeout() { //nolint:errorlint // a deadline is what it is
		t.Errorf("%s: the session goes on after %v: %v", what, bound, err)
	}
}

// lives wants an answer to PINGREQ.
func lives(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte{0xc0, 0}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	var answer [2]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil || answer[0] != 0xd0 {
		t.Fatalf("%s: got % x, %v, want PINGRESP", what, answer, err)
	}
}

func twoNodes(t *testing.T) (one, two *countersigntest.Server) {
	t.Helper()
	one = countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres})
	two = countersigntest.Start(t, countersigntest.Options{Beside: one})
	kinds := []string{"certificate", "secret", "sas"}
	if _, err := one.Admin.PutFleet(t.Context(), "default", api.PutFleet{AccessKinds: &kinds}); err != nil {
		t.Fatal(err)
	}
	return one, two
}

// act takes something away from a client.
type act struct {
	name  string
	event string // by which the transaction is known on the wire
	// make registers a client and returns what takes its access away; done reports
	// whether that says that it was in force already.
	make func(t *testing.T, s *countersigntest.Server, id string) (client, func() (already bool, err error))
}

func acts() []act {
	cut := func(c *api.Cut, err error) (bool, error) { return err == nil && c.Already, err }
	enrolled := func(t *testing.T, s *countersigntest.Server, id string) client {
		return client{id: id, identity: s.Enroll(t, id)}
	}
	return []act{
		{"revoke", "device.revoked", func(t *testing.T, s *countersigntest.Server, id string) (client, func() (bool, error)) {
			return enrolled(t, s, id), func() (bool, error) {
				return cut(s.Admin.Revoke(t.Context(), id, api.Revoke{Reason: "keyCompromise"}))
			}
		}},
		{"suspend", "device.suspended", func(t *testing.T, s *countersigntest.Server, id string) (client, func() (bool, error)) {
			return enrolled(t, s, id), func() (bool, error) { return cut(s.Admin.Suspend(t.Context(), id, api.Act{Note: "seen twice"})) }
		}},
		{"retire", "device.retired", func(t *testing.T, s *countersigntest.Server, id string) (client, func() (bool, error)) {
			return enrolled(t, s, id), func() (bool, error) { return cut(s.Admin.Retire(t.Context(), id, api.Act{})) }
		}},
		{"stop a secret", "secret.stopped", func(t *testing.T, s *countersigntest.Server, id string) (client, func() (bool, error)) {
			if _, err := s.Admin.CreateDevice(t.Context(), api.NewDevice{ID: id}); err != nil {
				t.Fatal(err)
			}
			secret, err := s.Admin.CreateSecret(t.Context(), id, api.NewSecret{})
			if err != nil {
				t.Fatal(err)
			}
			return client{id: id, user: id, password: secret.Text}, func() (bool, error) {
				done, err := s.Admin.StopSecret(t.Context(), id, secret.ID, api.Act{Note: "in a bin"})
				return err == nil && done.Already, err
			}
		}},
		{"stop a key", "credential.stopped", func(t *testing.T, s *countersigntest.Server, id string) (client, func() (bool, error)) {
			if _, err := s.Admin.CreateDevice(t.Context(), api.NewDevice{ID: id}); err != nil {
				t.Fatal(err)
			}
			key, err := s.Admin.CreateKey(t.Context(), api.NewKey{Device: id})
			if err != nil {
				t.Fatal(err)
			}
			return client{id: id, user: id, password: sasToken(t, key.Primary, id)}, func() (bool, error) {
				done, err := s.Admin.StopCredential(t.Context(), key.ID, api.Act{Note: "in a bin"})
				return err == nil && done.Already, err
			}
		}},
	}
}

// sasToken is what a device with a symmetric key shows to connect.
func sasToken(t *testing.T, key, device string) string {
	t.Helper()
	return sasFor(t, key, "hub/devices/"+device)
}

// sasFor signs a resource with a symmetric key.
func sasFor(t *testing.T, key, resource string) string {
	t.Helper()
	secret, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	resource, until := url.QueryEscape(resource), time.Now().Add(time.Hour).Unix()
	h := hmac.New(sha256.New, secret)
	fmt.Fprintf(h, "%s\n%d", resource, until)
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d", resource, url.QueryEscape(base64.StdEncoding.EncodeToString(h.Sum(nil))), until)
}

// TestLostAnswerOfAnActCutsOnEveryNode loses the answer of COMMIT, or COMMIT itself, of
// each act. The operator must be told the truth, and the sessions on both nodes end.
func TestLostAnswerOfAnActCutsOnEveryNode(t *testing.T) {
	one, two := twoNodes(t)
	for i, a := range acts() {
		for _, lose := range []string{"answer", "commit"} {
			t.Run(a.name+", "+lose, func(t *testing.T) {
				c, do := a.make(t, one, fmt.Sprintf("pump-%d%s", i, lose))
				here, there := c.open(t, one), c.open(t, two)
				lost := one.Faults.LoseCommit(a.event)
				if lose == "commit" {
					one.Faults.Heal()
					lost = one.Faults.DropCommit(a.event)
				}
				if already, err := do(); err != nil || already {
					t.Errorf("the act: got already %v, %v, want it done", already, err)
				}
				select {
				case <-lost:
				default:
					t.Fatal("no COMMIT was lost")
				}
				endsWithin(t, "the asked node", here, event.CaughtUp)
				endsWithin(t, "the other node", there, event.CaughtUp)
				for _, s := range []*countersigntest.Server{one, two} {
					if _, code := c.dial(t, s); code == 0 {
						t.Error("connected after the act")
					}
				}
				if already, err := do(); err != nil || !already {
					t.Errorf("asked again: got already %v, %v, want that it is in force", already, err)
				}
			})
		}
	}
}

// TestActOfUnknownOutcomeIsFoundOutLater takes the database away from the asked node
// with the answer of COMMIT, longer than the operator waits. The other node cuts at
// once; the asked one as soon as it can know, and asking again works.
func TestActOfUnknownOutcomeIsFoundOutLater(t *testing.T) {
	one, two := twoNodes(t)
	for i, a := range acts() {
		c, do := a.make(t, one, fmt.Sprintf("pump-%d", i))
		here, there := c.open(t, one), c.open(t, two)
		one.Faults.LoseCommitAndCut(a.event)
		_, err := do()
		if err == nil || !strings.Contains(err.Error(), "may or may not be recorded") {
			t.Errorf("%s: got %v, want that the outcome is unknown", a.name, err)
		}
		endsWithin(t, a.name+": the other node", there, event.CaughtUp)
		one.Faults.Heal()
		endsWithin(t, a.name+": the asked node", here, event.CaughtUp)
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			already, err := do()
			if err == nil && !already {
				t.Errorf("%s: it was not on record", a.name)
			}
			if err == nil {
				break
			}
			if time.Since(began) > patience {
				t.Fatalf("%s, asked again: %v", a.name, err)
			}
		}
	}
}

// TestRevocationAfterAnOutageReachesTheOtherNodeInTime takes the database away from
// both nodes, and revokes as soon as the first one has it back. The other one must cut
// within the bound after it has it back too, and accept no client by what it knew before.
// Where the database's machine was gone, attempts that began then never end by themselves.
func TestRevocationAfterAnOutageReachesTheOtherNodeInTime(t *testing.T) {
	for name, lose := range map[string]func(*storetest.Proxy){
		"the database was stopped": (*storetest.Proxy).Cut,
		"its machine was gone":     (*storetest.Proxy).Silence,
	} {
		t.Run(name, func(t *testing.T) { revokeAfterAnOutage(t, lose) })
	}
}

func revokeAfterAnOutage(t *testing.T, lose func(*storetest.Proxy)) {
	one, two := twoNodes(t)
	revoked, kept := client{id: "pump-1", identity: one.Enroll(t, "pump-1")}, client{id: "pump-2", identity: one.Enroll(t, "pump-2")}
	lost, stays := revoked.open(t, two), kept.open(t, two)
	lose(one.Faults)
	lose(two.Faults)
	time.Sleep(8 * time.Second) // it is lost, and attempts to reconnect are under way
	began := time.Now()
	if _, code := kept.dial(t, two); code != 3 {
		t.Errorf("CONNACK without a database: got %d, want 3, server unavailable", code)
	}
	if took := time.Since(began); took > 2*time.Second { // the handshake included
		t.Errorf("it was refused after %v, want at once", took)
	}
	lives(t, "a session without a database", stays)
	one.Faults.Heal()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		_, err := one.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"})
		if err == nil {
			break
		}
		if time.Since(began) > patience {
			t.Fatal(err)
		}
	}
	two.Faults.Heal()
	endsWithin(t, "the other node", lost, event.CaughtUp)
	lives(t, "a session that was not revoked", stays)
	if _, code := revoked.dial(t, two); code != 5 {
		t.Errorf("CONNACK after the revocation: got %d, want 5", code)
	}
	kept.open(t, two)
}

// TestNodeWithoutNoticesCutsByTheLog lets no notice reach the other node, whose clock
// is more than a minute away, in both directions.
func TestNodeWithoutNoticesCutsByTheLog(t *testing.T) {
	t.Parallel()                                                          // waits for seconds
	ahead := func() time.Time { return time.Now().Add(75 * time.Second) } // deadlines of sockets suffer no clock that is behind
	for name, clocks := range map[string][2]func() time.Time{"behind": {ahead, time.Now}, "ahead": {time.Now, ahead}} {
		t.Run(name, func(t *testing.T) {
			one := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres, Now: clocks[0]})
			two := countersigntest.Start(t, countersigntest.Options{Beside: one, Now: clocks[1]})
			c := client{id: "pump-1", identity: one.Enroll(t, "pump-1")}
			conn := c.open(t, two)
			two.Faults.CutNotices()
			time.Sleep(300 * time.Millisecond)
			if _, err := one.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"}); err != nil {
				t.Fatal(err)
			}
			endsWithin(t, "the node without notices", conn, event.CaughtUp)
			if _, code := c.dial(t, two); code != 5 {
				t.Errorf("CONNACK there: got %d, want 5", code)
			}
			two.Faults.Heal()
		})
	}
}

// TestConnectIsAnsweredWhileTheDatabaseHangs bounds the time to CONNACK, from the
// moment that the database stops to answer.
func TestConnectIsAnsweredWhileTheDatabaseHangs(t *testing.T) {
	s := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres})
	used, fresh := client{id: "pump-1", identity: s.Enroll(t, "pump-1")}, client{id: "pump-2", identity: s.Enroll(t, "pump-2")}
	conn := used.open(t, s)
	s.Faults.Hang()
	var answers []chan time.Duration
	for _, c := range []client{used, fresh} {
		took := make(chan time.Duration, 1)
		answers = append(answers, took)
		go func() {
			began := time.Now()
			if _, code := c.dial(t, s); code != 3 {
				t.Errorf("CONNACK of %s: got %d, want 3", c.id, code)
			}
			took <- time.Since(began)
		}()
	}
	for _, took := range answers {
		select {
		case d := <-took:
			if d > 8*time.Second {
				t.Errorf("CONNACK after %v", d)
			}
		case <-time.After(patience):
			t.Fatal("no CONNACK")
		}
	}
	lives(t, "a session while the database hangs", conn)
	s.Faults.Heal()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if _, code := fresh.dial(t, s); code == 0 {
			break
		}
		if time.Since(began) > event.CaughtUp {
			t.Fatal("no connection after the database answers again")
		}
	}
}

// TestPolicyThatChangesDuringAFirstUseHolds holds the record of a first use up while a
// policy is applied that lets nobody in. The session that was decided by the old one
// must not go on.
func TestPolicyThatChangesDuringAFirstUseHolds(t *testing.T) {
	one, two := twoNodes(t)
	c := client{id: "pump-1", identity: one.Enroll(t, "pump-1")}
	db := storetest.OpenURL(t, one.Faults.URL())
	locked, free, held := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		held <- db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			err := registry.LockDevice(ctx, tx, "pump-1")
			close(locked)
			<-free
			return err
		})
	}()
	<-locked
	opened := make(chan net.Conn, 1)
	go func() {
		defer close(opened) // whatever happens
		opened <- c.open(t, two)
	}()
	for began, n := time.Now(), 0; n == 0; time.Sleep(10 * time.Millisecond) { // until it has been decided, and waits for the lock
		err := db.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`).Scan(&n)
		if err != nil || time.Since(began) > patience {
			t.Fatalf("no first use waits for the lock: %v", err)
		}
	}
	applyPolicy(t, one, closedPolicy, 0)
	time.Sleep(200 * time.Millisecond) // the other node knows
	close(free)
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	if conn := <-opened; conn != nil {
		endsWithin(t, "the session by the old policy", conn, event.CaughtUp)
	}
}
