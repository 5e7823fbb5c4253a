package server_test

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	plainPolicy = `
statements:
  - {id: in, effect: allow, actions: [connect]}
  - {id: down, effect: allow, actions: [subscribe, receive], topics: ['devices/${device.id}/down/#']}
`
	newsPolicy = plainPolicy + `  - {id: news, effect: allow, actions: [subscribe, receive], topics: ['news/#']}
`
	closedPolicy = plainPolicy + `  - {id: closed, effect: deny, actions: [connect]}
`
)

// subscribe asks for a filter at QoS 0 and gives the return code of SUBACK.
func subscribe(t *testing.T, conn net.Conn, filter string) byte {
	t.Helper()
	packet := append([]byte{0x82, byte(5 + len(filter)), 0, 7, 0, byte(len(filter))}, filter...)
	if _, err := conn.Write(append(packet, 0)); err != nil {
		t.Fatal(err)
	}
	var ack [5]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil || ack[0] != 0x90 {
		t.Fatalf("SUBACK: got % x, %v", ack, err)
	}
	return ack[4]
}

// ended waits for the server to close the connection.
func ended(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := conn.Read(make([]byte, 1))
	if netErr, ok := err.(net.Error); err == nil || ok && netErr.Timeout() { //nolint:errorlint // a deadline is what it is
		t.Fatalf("the session: got %v, want its end", err)
	}
}

func applyPolicy(t *testing.T, s *countersigntest.Server, source string, sessions int) *api.AppliedPolicy {
	t.Helper()
	done, err := s.Admin.ApplyPolicy(t.Context(), "default", api.ApplyPolicy{PolicySource: api.PolicySource{Source: source}})
	if err != nil || !done.Changed || done.Sessions != sessions {
		t.Fatalf("ApplyPolicy: got %+v, %v, want %d sessions to lose", done, err, sessions)
	}
	return done
}

// here is how many of one session at other the node that was asked has itself.
func here(asked, other *countersigntest.Server) int {
	if asked == other {
		return 1
	}
	return 0
}

func TestAppliedPolicyChangesWhatALiveDeviceMayDo(t *testing.T) {
	countersigntest.Each(t, appliedPolicyChangesWhatALiveDeviceMayDo)
}

func appliedPolicyChangesWhatALiveDeviceMayDo(t *testing.T, asked, other *countersigntest.Server) {
	t.Helper()
	id := asked.Enroll(t, "pump-1")
	conn, _ := connect(t, other, id)
	if code := subscribe(t, conn, "devices/pump-1/down/#"); code != 0 {
		t.Fatalf("subscription under the built-in policy: got %#x, want 0", code)
	}
	if code := subscribe(t, conn, "news/x"); code != 0x80 {
		t.Fatalf("subscription to news: got %#x, want 0x80", code)
	}
	applyPolicy(t, asked, newsPolicy, here(asked, other)) // it may no longer publish
	ended(t, conn)
	conn, code := connect(t, other, id)
	if code != 0 || subscribe(t, conn, "news/x") != 0 {
		t.Fatalf("under a policy with news: got CONNACK %d, or no news", code)
	}
	wider := strings.Replace(newsPolicy, "news/#", "news/#', 'more/#", 1)
	applyPolicy(t, asked, wider, 0)
	if code := subscribe(t, conn, "devices/pump-1/down/x"); code != 0 {
		t.Fatalf("a session that loses nothing: got %#x, want it to go on", code)
	}
	applyPolicy(t, asked, plainPolicy, here(asked, other))
	ended(t, conn)
	conn, code = connect(t, other, id)
	if code != 0 || subscribe(t, conn, "news/x") != 0x80 {
		t.Fatalf("under a policy without news: got CONNACK %d, or news", code)
	}
	closed := applyPolicy(t, asked, closedPolicy, here(asked, other))
	ended(t, conn)
	if _, code := connect(t, other, id); code != 5 {
		t.Fatalf("under a policy that lets nobody in: got CONNACK %d, want 5", code)
	}
	answer, err := asked.Admin.ExplainPolicy(t.Context(), api.PolicyQuestion{Device: "pump-1", Action: "connect"})
	if err != nil || answer.Decision.Allowed || answer.Decision.Statement != "closed" || answer.Version != closed.Version {
		t.Errorf("ExplainPolicy: got %+v, %v, want denied by closed", answer, err)
	}
	if _, err := asked.Admin.RollbackPolicy(t.Context(), "default", api.RollbackPolicy{To: 0}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "back under the built-in policy", func() bool { // which the other node reads when it is told
		_, code := connect(t, other, id)
		return code == 0
	})
	wantRefusal(t, asked, "policy (version 4) of fleet default: statement closed")
	wantReplay(t, other)
}

// wantRefusal waits for the event of a refused connection with a reason.
func wantRefusal(t *testing.T, s *countersigntest.Server, reason string) {
	t.Helper()
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(50 * time.Millisecond) {
		for e, err := range s.Admin.DeviceEvents(t.Context(), "pump-1", api.Order{}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == "connection.refused" && strings.Contains(e.Reason, reason) {
				return
			}
		}
	}
	t.Errorf("no connection.refused with %q", reason)
}

// wantReplay waits until the sample has what happened, and holds a draft against it.
func wantReplay(t *testing.T, s *countersigntest.Server) {
	t.Helper()
	var last *api.PolicyReplay
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(100 * time.Millisecond) {
		r, err := s.Admin.ReplayPolicy(t.Context(), "default", closedPolicy)
		if err != nil {
			t.Fatal(err)
		}
		if last = r; r.NowDenied > 0 && r.Sessions == 1 {
			return
		}
	}
	t.Errorf("ReplayPolicy: got %+v, want connections that would now be denied, and one session", last)
}
