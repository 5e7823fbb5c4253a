package respond_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

const hookKey = "sixteen octets, and some more"

// secretFile is a reference to a secret.
func secretFile(t *testing.T, text string) config.Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Secret("file:" + path)
}

// receiver is a webhook that keeps what it gets.
type receiver struct {
	mu     sync.Mutex
	got    []*http.Request
	bodies [][]byte
	status int
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got, r.bodies = append(r.got, q), append(r.bodies, body)
	w.WriteHeader(r.status)
}

func (r *receiver) set(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

// notices are those that it took.
func (r *receiver) notices(t *testing.T) (list []api.Notice) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.bodies {
		var n api.Notice
		if err := json.Unmarshal(b, &n); err != nil {
			t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

func newReceiver(t *testing.T) (*receiver, config.Channel) {
	t.Helper()
	r := &receiver{status: http.StatusNoContent}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return r, config.Channel{Name: "hook", Kind: config.ChannelWebhook, URL: s.URL + "/in", Secret: secretFile(t, hookKey)}
}

func TestWebhookIsSigned(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		r, c := newReceiver(t)
		w := newWorld(t, db, c)
		w.enroll(t, "pump-1", 0)
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateAlert, countersign.MitigateWebhook}})
		w.find(t, clone("pump-1"))
		start(t, w.Run)
		kit.Eventually(t, "the notice at the webhook", func() bool { return len(r.notices(t)) == 1 })
		n := r.notices(t)[0]
		if n.Kind != respond.NewsOpened || n.Alert == nil || n.Alert.Device != "pump-1" || n.Alert.Why == "" || len(n.Alert.Evidence) != 1 {
			t.Errorf("notice: got %+v", n)
		}
		q := r.got[0]
		at, sum, ok := strings.Cut(q.Header.Get("Countersign-Signature"), ",")
		seconds, err := strconv.ParseInt(strings.TrimPrefix(at, "t="), 10, 64)
		if !ok || err != nil || seconds != w.clock.Now().Unix() {
			t.Fatalf("signature: got %q", q.Header.Get("Countersign-Signature"))
		}
		m := hmac.New(sha256.New, []byte(hookKey))
		_, _ = fmt.Fprintf(m, "%d.%s", seconds, r.bodies[0])
		if want := "v1=" + hex.EncodeToString(m.Sum(nil)); sum != want {
			t.Errorf("signature: got %s, want %s", sum, want)
		}
		if q.Header.Get("Countersign-Delivery") != n.ID {
			t.Errorf("delivery: got %q, want %q", q.Header.Get("Countersign-Delivery"), n.ID)
		}
		kit.Eventually(t, "the timeline says so", func() bool { return lines(w.one(t, respond.Filter{}), "webhook", respond.Done) == 1 })
		w.find(t, clone("pump-1")) // the same again is no news
		time.Sleep(50 * time.Millisecond)
		if got := len(r.notices(t)); got != 1 {
			t.Errorf("notices after a repetition: got %d, want 1", got)
		}
	})
}

func TestFailingChannelIsTriedAgainAndSeen(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		r, c := newReceiver(t)
		c.Severity = "high" // whatever the fleet says
		r.set(http.StatusInternalServerError)
		w := newWorld(t, db, c)
		w.enroll(t, "pump-1", 0)
		w.find(t, clone("pump-1"), countersign.Finding{Rule: looked, Severity: countersign.SeverityLow, Subject: "server", Summary: "not for this channel"})
		stop := start(t, w.Run)
		kit.Eventually(t, "the event of it", func() bool {
			w.clock.Advance(20 * time.Minute)
			w.find(t, countersign.Finding{Rule: "noise", Severity: countersign.SeverityInfo, Subject: "server", Summary: "wakes the workers"})
			time.Sleep(50 * time.Millisecond)
			return len(w.events(t, countersign.MitigationFailed)) == 1
		})
		list, err := w.ChannelList(t.Context())
		if err != nil || !list[0].Failing || list[0].Waiting != 1 || !strings.Contains(list[0].Error, "500") {
			t.Errorf("channel: got %+v, %v", list, err)
		}
		if e := w.events(t, countersign.MitigationFailed)[0]; e.Data["channel"] != "hook" {
			t.Errorf("event: got %+v", e)
		}
		stop() // what waits survives
		r.set(http.StatusOK)
		w.clock.Advance(20 * time.Minute)
		start(t, w.Run)
		kit.Eventually(t, "it is delivered at last", func() bool {
			list, err := w.ChannelList(t.Context())
			return err == nil && list[0].Waiting == 0 && !list[0].Failing
		})
		ids := map[string]bool{}
		for _, n := range r.notices(t) {
			ids[n.ID] = true
			if n.Alert.Rule != cloned {
				t.Errorf("told of %s, which is below the channel's severity", n.Alert.Rule)
			}
		}
		if len(ids) != 1 {
			t.Errorf("ids over all attempts: got %d, want 1", len(ids))
		}
	})
}

func TestStormBecomesADigest(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		r, c := newReceiver(t)
		c.Severity = "info"
		w := newWorld(t, db, c)
		start(t, w.Run)
		const storm = 60
		for i := range storm {
			w.find(t, countersign.Finding{Rule: "spray", Severity: countersign.SeverityHigh, Subject: fmt.Sprintf("address:192.0.2.%d/32", i), Summary: "x"})
		}
		kit.Eventually(t, "the first come one by one", func() bool { return len(r.notices(t)) == 10 })
		w.clock.Advance(2 * time.Minute)
		w.find(t, countersign.Finding{Rule: "noise", Severity: countersign.SeverityInfo, Subject: "server", Summary: "wakes the workers"})
		kit.Eventually(t, "the others in one", func() bool { return len(r.notices(t)) == 11 })
		g := r.notices(t)[10]
		if g.Kind != respond.NewsDigest || g.Digest == nil || g.Digest.Notices != storm-10 || g.Digest.ByRule["spray"] != storm-10 || len(g.Digest.Alerts) != 10 {
			t.Errorf("digest: got %+v", g.Digest)
		}
	})
}

func TestWebhookDoesNotFollowNorTellItsURL(t *testing.T) {
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer target.Close()
	hop := httptest.NewServer(http.RedirectHandler(target.URL, http.StatusTemporaryRedirect))
	defer hop.Close()
	c := config.Channel{Name: "hook", Kind: config.ChannelWebhook, URL: hop.URL + "/very-secret-path", Secret: secretFile(t, hookKey)}
	w := newWorld(t, storetest.Open(t), c)
	for range 2 {
		out, err := w.TestChannel(t.Context(), "hook", ana.By)
		if err != nil || out.Delivered || strings.Contains(out.Error, "very-secret") {
			t.Errorf("test of the channel: got %+v, %v", out, err)
		}
		hop.Close() // and now nobody listens
	}
	_, err := w.TestChannel(t.Context(), "other", ana.By)
	kit.WantCode(t, err, countersign.NotFound)
}

// identity is a server certificate for loopback that is its own root.
func identity(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "receiver"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

// mailServer speaks as much SMTP (RFC 5321, 3207, 4954) as a submission needs.
type mailServer struct {
	cert    tls.Certificate
	noTLS   bool
	mu      sync.Mutex
	letters []letter
}

type letter struct {
	from, user string
	to         []string
	secure     bool
	data       string
}

func (s *mailServer) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go s.talk(c)
	}
}

func (s *mailServer) talk(c net.Conn) {
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	say := func(line string) { _, _ = fmt.Fprintf(c, "%s\r\n", line) }
	say("220 receiver ESMTP")
	var m letter
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			if m.secure {
				say("250-receiver")
				say("250 AUTH PLAIN")
			} else if s.noTLS {
				say("250 receiver")
			} else {
				say("250-receiver")
				say("250 STARTTLS")
			}
		case "STARTTLS":
			if s.noTLS {
				say("502 not here")
				continue
			}
			say("220 go ahead")
			secure := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS12})
			if secure.Handshake() != nil {
				return
			}
			c, r, m.secure = secure, bufio.NewReader(secure), true
		case "AUTH":
			raw, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			if string(raw) != "\x00guard\x00open sesame" {
				say("535 no")
				continue
			}
			m.user = "guard"
			say("235 welcome")
		case "MAIL":
			m.from = rest
			say("250 ok")
		case "RCPT":
			m.to = append(m.to, rest)
			say("250 ok")
		case "DATA":
			say("354 go")
			var b strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				b.WriteString(strings.TrimPrefix(line, "."))
			}
			m.data = b.String()
			s.mu.Lock()
			s.letters = append(s.letters, m)
			s.mu.Unlock()
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 what?")
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mailChannel(t *testing.T, s *mailServer) config.Channel {
	t.Helper()
	l := listen(t)
	cert, root := identity(t)
	s.cert = cert
	go s.serve(l)
	return config.Channel{
		Name: "oncall", Kind: config.ChannelMail, Addr: l.Addr().String(), TLS: config.TLSStart, Roots: root, Username: "guard",
		Password: secretFile(t, "open sesame"), From: "countersign@example.net", To: []string{"ana@example.net", "bo@example.net"},
	}
}

func TestMailGoesByStartTLS(t *testing.T) {
	s := &mailServer{}
	w := newWorld(t, storetest.Open(t), mailChannel(t, s))
	w.enroll(t, "pump-1", 0)
	w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateMail}})
	f := clone("pump-1")
	f.Summary = "Zürich ↯ two places\r\nBcc: thief@example.org" // devices choose some of these words
	w.find(t, f)
	start(t, w.Run)
	taken := func() []letter { s.mu.Lock(); defer s.mu.Unlock(); return s.letters }
	kit.Eventually(t, "the mail arrives", func() bool { return len(taken()) == 1 })
	m := taken()[0]
	if !m.secure || m.user != "guard" || !strings.HasPrefix(m.from, "FROM:<countersign@example.net>") || len(m.to) != 2 {
		t.Errorf("envelope: got %+v", m)
	}
	parsed, err := mail.ReadMessage(strings.NewReader(m.data))
	if err != nil {
		t.Fatalf("read the mail: %v\n%s", err, m.data)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(parsed.Header.Get("Subject"))
	if err != nil || subject != "[high] Zürich ↯ two places  Bcc: thief@example.org" {
		t.Errorf("subject: got %q, %v", subject, err)
	}
	if parsed.Header.Get("Bcc") != "" || parsed.Header.Get("Auto-Submitted") != "auto-generated" || parsed.Header.Get("Message-Id") == "" {
		t.Errorf("header: got %v", parsed.Header)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(parsed.Body))
	if err != nil || !strings.Contains(string(body), "What to do: suspend it") || !strings.Contains(string(body), "has all evidence") {
		t.Errorf("body: got %q, %v", body, err)
	}
}

func TestMailIsNotSentInTheClear(t *testing.T) {
	s := &mailServer{noTLS: true}
	w := newWorld(t, storetest.Open(t), mailChannel(t, s))
	out, err := w.TestChannel(t.Context(), "oncall", ana.By)
	if err != nil || out.Delivered || len(s.letters) != 0 {
		t.Errorf("a server without STARTTLS: got %+v, %v, %d letters", out, err, len(s.letters))
	}
	s = &mailServer{}
	c := mailChannel(t, s)
	_, c.Roots = identity(t) // another root
	w = newWorld(t, storetest.Open(t), c)
	out, err = w.TestChannel(t.Context(), "oncall", ana.By)
	if err != nil || out.Delivered || len(s.letters) != 0 {
		t.Errorf("a server with a foreign certificate: got %+v, %v", out, err)
	}
}

// syslogLine is RFC 5424 as our messages use it.
var syslogLine = regexp.MustCompile(`^<(\d+)>1 (\S+) (\S+) countersign \d+ (\S+) \[countersign@32473((?: [a-z]+="(?:[^"\\\]]|\\["\\\]])*")+)\] \x{FEFF}(.*)$`)

func TestSyslogIsFramedOverTLS(t *testing.T) {
	cert, root := identity(t)
	l := tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	got := make(chan string, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			got <- string(b)
			_ = c.Close()
		}
	}()
	siem := config.Channel{Name: "siem", Kind: config.ChannelSyslog, Addr: l.Addr().String(), TLS: config.TLSOn, Roots: root}
	w := newWorld(t, storetest.Open(t), siem)
	w.enroll(t, "pump-1", 0)
	w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateSyslog}})
	sender := w.node(siem) // sends what w queues
	sender.Host = "sender.example.net"
	f := clone("pump-1")
	f.Subject = `device:"pump-1]\`
	f.Summary = strings.Repeat("ü", 3000)
	w.find(t, f)
	start(t, sender.Run)
	var frame string
	select {
	case frame = <-got:
	case <-time.After(kit.Patience):
		t.Fatal("nothing arrived")
	}
	size, m, _ := strings.Cut(frame, " ") // RFC 5425, 4.3
	if n, err := strconv.Atoi(size); err != nil || n != len(m) || n > 2048 {
		t.Errorf("frame: got length %q of %d octets", size, len(m))
	}
	parts := syslogLine.FindStringSubmatch(m)
	if parts == nil {
		t.Fatalf("message: got %q", m)
	}
	if parts[1] != strconv.Itoa(13*8+2) || parts[3] != sender.Host || parts[4] != "alert.opened" {
		t.Errorf("head: got %q", parts[1:5])
	}
	for _, want := range []string{` rule="` + cloned + `"`, ` device="pump-1"`, ` fleet="default"`, ` subject="device:\"pump-1\]\\"`} {
		if !strings.Contains(parts[5], want) {
			t.Errorf("structured data: got %q, want %q in it", parts[5], want)
		}
	}
}

func TestNothingIsLostWhenTheServerStops(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		r, c := newReceiver(t)
		c.Severity = "info"
		w := newWorld(t, db, c)
		for i := range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			d := w.node(w.Channels...)
			go func() { defer close(done); _ = d.Run(ctx) }()
			write(t, db, func(ctx context.Context, tx *store.Tx) error {
				return d.Take(ctx, tx, []countersign.Finding{{Rule: "r", Subject: fmt.Sprintf("fleet:f%d", i), Summary: "x"}})
			})
			cancel() // at any moment of the delivery
			<-done
			w.clock.Advance(2 * time.Minute)
		}
		start(t, w.Run)
		kit.Eventually(t, "all arrive", func() bool {
			ids := map[string]bool{}
			for _, n := range r.notices(t) {
				ids[n.ID] = true
			}
			return len(ids) == 5
		})
	})
}
