package edge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// line up n waiters of an address.
func lineUp(t *testing.T, s *turns, from netip.Prefix, known bool, n int) []*waiter {
	t.Helper()
	var out []*waiter
	for range n {
		w, now := s.enter(from, known)
		if now || w == nil {
			t.Fatalf("enter of %s: got %v, %t, want a wait", from, w, now)
		}
		out = append(out, w)
	}
	return out
}

func granted(w *waiter) bool {
	select {
	case ok := <-w.granted:
		return ok
	default:
		return false
	}
}

func TestAddressesTakeTurns(t *testing.T) {
	s := &turns{limit: 1, strange: 1}
	if _, now := s.enter(numbered(0), false); !now {
		t.Fatal("the first did not get its turn at once")
	}
	flood := lineUp(t, s, numbered(1), false, 1000)
	honest := lineUp(t, s, numbered(2), false, 1)
	s.leave(false)
	s.leave(false)
	if !granted(flood[0]) || !granted(honest[0]) {
		t.Error("one connection of an address waited for a thousand of another")
	}
	if granted(flood[1]) {
		t.Error("the second of the flood got a turn of its own")
	}
	for range 999 {
		s.leave(false)
	}
	if !granted(flood[999]) || s.waiting() != 0 || len(s.lines[ofStrangers].queues) != 0 {
		t.Errorf("the line did not empty: %d wait", s.waiting())
	}
}

func TestKnownAddressesGoFirstAndStrangersStillCome(t *testing.T) {
	s := &turns{limit: 2, strange: 1}
	s.enter(numbered(0), false)
	strangers := lineUp(t, s, numbered(1), false, 4) // though a turn is free: it is not for them
	if _, now := s.enter(numbered(9), true); !now {
		t.Fatal("a known address did not get the turn that strangers may not have")
	}
	known := lineUp(t, s, numbered(2), true, 12)
	s.leave(true)
	if !granted(known[0]) {
		t.Fatal("a known address was not first")
	}
	s.leave(false)
	got := 0
	for range 8 { // as many turns as come free, one at a time
		s.leave(true)
	}
	for _, w := range strangers {
		if granted(w) {
			got++
		}
	}
	if got == 0 {
		t.Error("strangers got no turn beside a busy known address")
	}
}

func TestDropEndsAWait(t *testing.T) {
	s := &turns{limit: 1, strange: 1}
	s.enter(numbered(0), false)
	w := lineUp(t, s, numbered(1), false, 2)
	s.drop(w[0])
	s.drop(w[0])
	if ok := <-w[0].granted; ok {
		t.Error("a dropped wait was granted")
	}
	s.leave(false)
	if !granted(w[1]) {
		t.Error("the next did not get the turn")
	}
	s.drop(w[1]) // too late: it has its turn
	if s.running != 1 || s.waiting() != 0 {
		t.Errorf("turns: %d running, %d waiting", s.running, s.waiting())
	}
}

func TestTheLineIsBounded(t *testing.T) {
	s := &turns{limit: 1, strange: 1}
	s.enter(numbered(0), false)
	for i := range maxWaiting {
		lineUp(t, s, numbered(i), false, 1)
	}
	if w, now := s.enter(numbered(1), true); w != nil || now {
		t.Error("one more than may wait was let wait")
	}
}

func TestARetriedHandshakeTakesASecondTurn(t *testing.T) {
	cert := selfSigned(t)
	for _, tt := range []struct {
		name  string
		curve tls.CurveID // all that the server takes; the client offers a share of P-256
		turns uint64
	}{{"plain", tls.CurveP256, 1}, {"retried", tls.CurveP521, 2}} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1_000_000, 0)
			g := newGuard(&now)
			ours, theirs := connected(t)
			s := &socket{Conn: ours, guard: g, wait: time.Minute}
			server := tls.Server(s, listening(&tls.Config{Certificates: []tls.Certificate{cert}, CurvePreferences: []tls.CurveID{tt.curve}, MinVersion: tls.VersionTLS13}, false))
			done := make(chan error, 1)
			go func() { done <- server.Handshake() }()
			client := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.CurveP256, tls.CurveP521}})
			if err := client.Handshake(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got := client.ConnectionState().HelloRetryRequest; got != (tt.turns == 2) {
				t.Fatalf("HelloRetryRequest: got %t", got)
			}
			// A client's second ClientHello comes in more than one piece, with a turn for each.
			if (g.turns.begun == 1) != (tt.turns == 1) || g.turns.running != 0 {
				t.Errorf("turns: got %d, want %d; %d still running", g.turns.begun, tt.turns, g.turns.running)
			}
		})
	}
}

// TestADawdlerHoldsNoTurn sends one octet of the second ClientHello and no more.
func TestADawdlerHoldsNoTurn(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	ours, theirs := connected(t)
	s := &socket{Conn: ours, guard: g, wait: time.Minute}
	server := tls.Server(s, listening(&tls.Config{
		Certificates: []tls.Certificate{selfSigned(t)}, CurvePreferences: []tls.CurveID{tls.CurveP521}, MinVersion: tls.VersionTLS13,
	}, false))
	go func() { _ = server.Handshake() }()
	client := tls.Client(&dawdler{Conn: theirs}, &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.CurveP256, tls.CurveP521}})
	go func() { _ = client.Handshake() }()
	counts := func() (begun uint64, running int) {
		g.turns.mu.Lock()
		defer g.turns.mu.Unlock()
		return g.turns.begun, g.turns.running
	}
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		begun, running := counts()
		if begun >= 2 && running == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("turns: %d begun, %d running; want two or more and none", begun, running)
		}
	}
}

// dawdler sends its first ClientHello whole and one octet of all that follows.
type dawdler struct {
	net.Conn
	wrote bool
}

func (d *dawdler) Write(b []byte) (int, error) {
	if !d.wrote {
		d.wrote = true
		return d.Conn.Write(b)
	}
	n, err := d.Conn.Write(b[:min(len(b), 1)])
	return max(n, len(b)), err // and it waits for the answer
}

func TestAClosedSocketWaitsForNoTurn(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	g.turns.limit = 0
	ours, _ := connected(t)
	s := &socket{Conn: ours, guard: g, wait: time.Hour}
	done := make(chan error, 1)
	go func() { done <- s.takeTurn() }()
	for g.Waiting() == 0 {
		time.Sleep(time.Millisecond)
	}
	s.abort()
	if err := <-done; !errors.Is(err, errNoTurn) {
		t.Errorf("takeTurn: got %v, want %v", err, errNoTurn)
	}
	short := &socket{Conn: ours, guard: g, wait: time.Millisecond}
	if err := short.takeTurn(); !errors.Is(err, errNoTurn) || g.Waiting() != 0 {
		t.Errorf("takeTurn: got %v, %d wait", err, g.Waiting())
	}
}

// connected returns both ends of a TCP connection.
func connected(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if theirs, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if ours, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	for _, c := range []net.Conn{ours, theirs} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return ours, theirs
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newGuard(now *time.Time) *Guard {
	g := &Guard{Now: func() time.Time { return *now }}
	g.init()
	return g
}

// tries counts how many connections come to nothing before the address is held.
func tries(t *testing.T, g *Guard, addr netip.Addr) (n int) {
	t.Helper()
	for {
		if _, why := g.ask(addr, DefaultTries, false); why != "" {
			return n
		}
		if n++; n > 10*DefaultTries {
			t.Fatal("the address is never held")
		}
		g.failed(addressOf(addr))
	}
}

func TestTriesThatComeToNothingAreBounded(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	a := netip.MustParseAddr("192.0.2.1")
	if got := tries(t, g, a); got != 200 {
		t.Errorf("tries of a stranger: got %d, want 200", got)
	}
	if _, why := g.ask(netip.MustParseAddr("192.0.2.2"), DefaultTries, false); why != "" {
		t.Errorf("another address: %s", why)
	}
	now = now.Add(10 * time.Second)
	if got := tries(t, g, a); got != 20 {
		t.Errorf("tries 10 s later: got %d, want 20", got)
	}
	now = now.Add(time.Second)
	g.admitted(addressOf(a)) // one got through: the address is a site's
	if got := tries(t, g, a); got != 1000 {
		t.Errorf("tries of a known address: got %d, want 1000", got)
	}
	now = now.Add(10 * time.Second)
	if got := tries(t, g, a); got != 500 {
		t.Errorf("tries 10 s later: got %d, want 500", got)
	}
	if known, _ := g.ask(a, DefaultTries, false); !known {
		t.Error("the address is not known")
	}
	now = now.Add(knownFor)
	if known, _ := g.ask(a, DefaultTries, false); known {
		t.Error("the address is known for ever")
	}
}

func TestSessionsCostAnAddressNothing(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	a := netip.MustParseAddr("192.0.2.1")
	for i := range 10_000 {
		if _, why := g.ask(a, DefaultTries, false); why != "" {
			t.Fatalf("device %d of the site: %s", i, why)
		}
		g.admitted(addressOf(a))
	}
}

func TestASuspectAddressHasFewTries(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	a := netip.MustParseAddr("192.0.2.1")
	tries(t, g, a)
	g.Suspect = func(s netip.Addr) bool { return s == a }
	if _, why := g.ask(a, DefaultTries, false); why != ReasonSuspect {
		t.Errorf("ask: got %q, want %q", why, ReasonSuspect)
	}
	now = now.Add(time.Minute)
	if got := tries(t, g, a); got != 20 {
		t.Errorf("tries of a suspect: got %d, want 20", got)
	}
	now = now.Add(5 * time.Second)
	if got := tries(t, g, a); got != 5 {
		t.Errorf("tries 5 s later: got %d, want 5", got)
	}
	g.admitted(addressOf(a)) // a device behind the same NAT holds a key
	if got := tries(t, g, a); got != 200 {
		t.Errorf("tries once a device came in: got %d, want 200", got)
	}
	for i := range 300 { // net/http's connections cost a suspect address a try each, and no other
		if _, why := g.ask(netip.MustParseAddr("192.0.2.2"), DefaultTries, true); why != "" {
			t.Fatalf("connection %d: %s", i, why)
		}
	}
	if _, why := g.ask(a, DefaultTries, true); why != ReasonSuspect {
		t.Errorf("ask: got %q, want %q", why, ReasonSuspect)
	}
}

func TestAFloodFromManyAddressesLeavesEachFewTries(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	site := netip.MustParseAddr("192.0.2.1")
	g.admitted(addressOf(site))
	passed := 0
	second := func(from, rate int) {
		for i := range rate {
			a := numbered(from + i%200).Addr()
			if _, why := g.ask(a, DefaultTries, false); why == "" {
				passed++
				g.failed(addressOf(a))
			}
			now = now.Add(time.Second / time.Duration(rate))
		}
	}
	for range 3 {
		second(0, 1000)
	}
	passed = 0
	for range 30 {
		second(0, 1000)
	}
	if passed > 30*120 {
		t.Errorf("of 1,000 a second from 200 addresses %d came through, want some 100", passed/30)
	}
	if _, why := g.ask(netip.MustParseAddr("198.51.100.1"), DefaultTries, false); why != "" {
		t.Errorf("a newcomer: %s", why)
	}
	if got := tries(t, g, site); got != 1000 {
		t.Errorf("tries of a known address: got %d, want 1000", got)
	}
	for range 10 {
		second(1000, 10) // what is usual
	}
	if got := tries(t, g, netip.MustParseAddr("198.51.100.2")); got != 200 {
		t.Errorf("tries of a stranger after the flood: got %d, want 200", got)
	}
	for range 20 { // one address alone makes no flood
		now = now.Add(time.Second)
		tries(t, g, netip.MustParseAddr("198.51.100.3"))
	}
	if g.watch(now); g.flooded {
		t.Error("one address made a flood")
	}
}

func TestTheGuardRemembersBounded(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	site := netip.MustParseAddr("192.0.2.1")
	g.admitted(addressOf(site))
	for i := range 3 * maxStandings {
		g.failed(numbered(i))
		g.TurnAway("mqtt", numbered(i), ReasonAddressTries)
	}
	if n := len(g.standings); n > maxStandings {
		t.Errorf("standings: got %d, more than %d", n, maxStandings)
	}
	if known, _ := g.ask(site, DefaultTries, false); !known {
		t.Error("a flood of addresses made the guard forget a known one")
	}
	if n := len(g.turned); n > maxTurned+1 {
		t.Errorf("addresses in the account: got %d, more than %d", n, maxTurned)
	}
	for i := range 2 * maxStandings {
		g.admitted(numbered(i))
	}
	if n := len(g.standings); n > maxStandings {
		t.Errorf("standings of known addresses: got %d, more than %d", n, maxStandings)
	}
}

func TestTurnedAwayIsToldOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []TurnedAway
		g := &Guard{Now: time.Now, Report: func(t TurnedAway) { reports = append(reports, t) }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		for i := range maxReported + 10 {
			for range 100 - i {
				g.TurnAway("mqtt", numbered(i), ReasonAddressTries)
			}
		}
		g.TurnAway("mqtt", numbered(0), ReasonEvicted)
		time.Sleep(reportEvery + time.Second)
		synctest.Wait()
		if len(reports) != maxReported+1 {
			t.Fatalf("reports: got %d, want %d", len(reports), maxReported+1)
		}
		first := TurnedAway{
			Listener: "mqtt", Address: numbered(0), Addresses: 1, Count: 101, For: time.Minute,
			Reasons: map[Reason]int{ReasonAddressTries: 100, ReasonEvicted: 1},
		}
		if diff := cmp.Diff(first, reports[0], cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("the first report (-want +got):\n%s", diff)
		}
		if rest := reports[maxReported]; rest.Address.IsValid() || rest.Addresses != 10 || rest.Count != 635 {
			t.Errorf("the rest: got %+v", rest)
		}
		time.Sleep(3 * reportEvery)
		cancel()
		if err := <-done; err != nil || len(reports) != maxReported+1 {
			t.Errorf("Run: %v, %d reports", err, len(reports))
		}
		if got := g.Counts()[Count{"mqtt", ReasonEvicted}]; got != 1 {
			t.Errorf("Counts: got %d, want 1", got)
		}
	})
}
