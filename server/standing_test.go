package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

// signer is a CA of a manufacturer.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue signs a certificate; the zero signer signs its own.
func (m signer) issue(t *testing.T, tmpl *x509.Certificate) signer {
	t.Helper()
	key := kit.Key(t)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.SubjectKeyId = serial, []byte(tmpl.Subject.CommonName)
	tmpl.NotBefore = time.Now().Add(-time.Hour)
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Now().Add(1000 * time.Hour)
	}
	parent, by := tmpl, key
	if m.cert != nil {
		parent, by = m.cert, m.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signer{cert, key}
}

func (m signer) below(t *testing.T, name string) signer {
	return m.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
}

func (m signer) list(t *testing.T, revoked *x509.Certificate) []byte {
	t.Helper()
	now := time.Now()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(2), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: revoked.SerialNumber, RevocationTime: now.Add(-time.Minute)}},
	}, m.cert, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// shown is a device with the certificate that it shows, in a fleet of its own.
type shown struct {
	id, fleet, maker string
	cert             tls.Certificate
	root, line, leaf signer // of a factory certificate
	live             net.Conn
}

// standingRules are the rules of a fleet that accepts its device in every way.
func (d *shown) standingRules() api.Rules {
	r := api.Rules{
		Access:   &api.Access{Kinds: []string{"certificate", "secret", "token"}},
		Recovery: &api.Recovery{MaxAge: "300h", MaxTimes: 9},
	}
	if d.maker != "" {
		r.Authorities, r.Connect = []string{d.maker}, true
	}
	return r
}

// standingNodes are one node or two, on one database.
type standingNodes struct {
	asked, other *countersigntest.Server
	db           *store.DB
}

func (n *standingNodes) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if err := n.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// saved has the fleet's sessions compared with the record, as any edit of a device does.
func (n *standingNodes) saved(t *testing.T, d *shown) {
	t.Helper()
	purpose := "to have its sessions compared"
	if _, err := n.asked.Admin.EditDevice(t.Context(), d.id, api.EditDevice{Purpose: &purpose}); err != nil {
		t.Fatal(err)
	}
}

func (n *standingNodes) rules(t *testing.T, d *shown, change func(*api.Rules)) {
	t.Helper()
	r := d.standingRules()
	change(&r)
	if _, err := n.asked.Admin.PutFleet(t.Context(), d.fleet, api.PutFleet{Rules: &r}); err != nil {
		t.Fatal(err)
	}
}

// device makes a fleet with one device, whose certificate is ours or its maker's, and opens
// its session.
func (n *standingNodes) device(t *testing.T, name string, factory bool) *shown {
	t.Helper()
	d := &shown{id: "pump-" + name, fleet: "f-" + name}
	if factory {
		d.maker = "m-" + name
		d.root = signer{}.below(t, "Maker of "+name)
		d.line = d.root.below(t, "Line of "+name)
		leaf := &x509.Certificate{Subject: pkix.Name{CommonName: d.id}, KeyUsage: x509.KeyUsageDigitalSignature}
		if strings.Contains(name, shortLived) {
			leaf.NotAfter = time.Now().Add(shortLife)
		}
		d.leaf = d.line.issue(t, leaf)
		d.cert = tls.Certificate{Certificate: [][]byte{d.leaf.cert.Raw, d.line.cert.Raw}, PrivateKey: d.leaf.key}
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.root.cert.Raw}))
		if _, err := n.asked.Admin.RegisterAuthority(t.Context(), api.NewAuthority{ID: d.maker, Certificate: text, Override: true, Reason: "a test"}); err != nil {
			t.Fatal(err)
		}
	}
	rules := d.standingRules()
	if _, err := n.asked.Admin.PutFleet(t.Context(), d.fleet, api.PutFleet{Methods: &[]string{"token", "idevid"}, Rules: &rules}); err != nil {
		t.Fatal(err)
	}
	if !factory {
		token := n.asked.Token(t, api.NewToken{Device: d.id, Fleet: d.fleet})
		key := kit.Key(t)
		status, answer := n.post(t, d, asking{n.asked.Endpoints().Enroll + "/api/v1/enroll", "application/pkcs10", token, kit.CSR(t, key, d.id)})
		if status != http.StatusOK {
			t.Fatalf("enroll %s: %d %s", d.id, status, answer)
		}
		d.cert.PrivateKey = key
		for block, rest := pem.Decode(answer); block != nil; block, rest = pem.Decode(rest) {
			d.cert.Certificate = append(d.cert.Certificate, block.Bytes)
		}
	}
	conn, ok := n.mqtt(t, d)
	if !ok {
		t.Fatalf("%s is refused before anything happened", d.id)
	}
	d.live = conn
	return d
}

func (n *standingNodes) tls(d *shown) *tls.Config {
	c := &tls.Config{RootCAs: n.other.Roots, MinVersion: tls.VersionTLS12}
	if len(d.cert.Certificate) > 0 {
		c.Certificates = []tls.Certificate{d.cert}
	}
	return c
}

// asking is a request with a body.
type asking struct {
	url, kind, bearer string
	body              []byte
}

func (n *standingNodes) post(t *testing.T, d *shown, a asking) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.url, bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", a.kind)
	if a.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+a.bearer)
	}
	transport := &http.Transport{TLSClientConfig: n.tls(d), DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, answer
}

func (n *standingNodes) mqtt(t *testing.T, d *shown) (net.Conn, bool) {
	t.Helper()
	conn, err := (&tls.Dialer{Config: n.tls(d)}).DialContext(t.Context(), "tcp", n.other.Broker(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	packet := append([]byte{0x10, byte(12 + len(d.id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(d.id))}, d.id...)
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		t.Fatal(err)
	}
	return conn, ack[3] == 0
}

// standingDoors ask at each door of the other node whether the certificate is good there.
// Those that change something come last.
func (n *standingNodes) doors() []standingDoor {
	e := n.other.Endpoints()
	ok := func(status int, _ []byte) bool { return status == http.StatusOK }
	renew := func(base string) func(*testing.T, *shown) bool {
		return func(t *testing.T, d *shown) bool {
			return ok(n.post(t, d, asking{base + "/api/v1/renew", "application/pkcs10", "", kit.CSR(t, kit.Key(t), d.id)}))
		}
	}
	return []standingDoor{
		{"mqtt", func(t *testing.T, d *shown) bool { _, in := n.mqtt(t, d); return in }},
		{"tunnel", func(t *testing.T, d *shown) bool {
			u, err := url.Parse(e.Tunnels["plc"])
			if err != nil {
				t.Fatal(err)
			}
			conn, err := (&tls.Dialer{Config: n.tls(d)}).DialContext(t.Context(), "tcp", u.Host)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, err = io.ReadFull(conn, make([]byte, len(banner)))
			return err == nil
		}},
		{"hook", func(t *testing.T, d *shown) bool {
			var chain []byte
			for _, der := range d.cert.Certificate {
				chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
			}
			body, err := json.Marshal(map[string]string{"client_id": d.id, "certificate": string(chain)})
			if err != nil {
				t.Fatal(err)
			}
			var answer struct {
				Allow bool `json:"allow"`
			}
			_, text := n.post(t, &shown{}, asking{e.Hook + "/hooks/b/connect", "application/json", hookSecret, body})
			if err := json.Unmarshal(text, &answer); err != nil {
				t.Fatalf("%v in %q", err, text)
			}
			return answer.Allow
		}},
		{"access token", func(t *testing.T, d *shown) bool {
			return ok(n.post(t, d, asking{e.Enroll + "/api/v1/access-tokens", "application/json", "", nil}))
		}},
		{"secret", func(t *testing.T, d *shown) bool {
			return ok(n.post(t, d, asking{e.Enroll + "/api/v1/secret", "application/json", "", []byte("{}")}))
		}},
		{"EST renewal", func(t *testing.T, d *shown) bool {
			text := base64.StdEncoding.EncodeToString(kit.CSR(t, kit.Key(t), d.id))
			return ok(n.post(t, d, asking{e.Enroll + "/.well-known/est/simplereenroll", "application/pkcs10", "", []byte(text)}))
		}},
		{"REST renewal", renew(e.Enroll)},
		{"recovery", renew(e.Recovery)},
	}
}

type standingDoor struct {
	name string
	asks func(*testing.T, *shown) bool
}

const (
	shortLived = "expired" // the reason for which a maker's certificate ends soon
	shortLife  = 5 * time.Second
	banner     = "service"
	hookSecret = "a-secret-of-20-characters"
)

// reasonsNotGood are what can happen to a certificate, and at which doors it is good
// afterwards. A door that is not named refuses it; live is its session.
func reasonsNotGood() []standingReason {
	all := []string{"mqtt", "tunnel", "hook", "access token", "secret", "EST renewal", "REST renewal", "recovery", "live"}
	renewals := []string{"EST renewal", "REST renewal", "recovery"}
	const one = ` WHERE device = $1`
	return []standingReason{
		{"nothing", all, all, func(*testing.T, *standingNodes, *shown) {}},
		{"revoked", nil, nil, func(t *testing.T, n *standingNodes, d *shown) {
			leaf, err := x509.ParseCertificate(d.cert.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.asked.Admin.RevokeCertificate(t.Context(), fmt.Sprintf("%x", leaf.SerialNumber), api.Revoke{Reason: "keyCompromise"}); err != nil {
				t.Fatal(err)
			}
		}},
		{"held", nil, nil, func(t *testing.T, n *standingNodes, d *shown) {
			n.exec(t, `UPDATE certificate SET state = 'held', held_from = state, reason = 6`+one, d.id)
			n.saved(t, d)
		}},
		{"suspended", nil, nil, func(t *testing.T, n *standingNodes, d *shown) {
			if _, err := n.asked.Admin.Suspend(t.Context(), d.id, api.Act{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"retired", nil, nil, func(t *testing.T, n *standingNodes, d *shown) {
			if _, err := n.asked.Admin.Retire(t.Context(), d.id, api.Act{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"superseded past its overlap", nil, nil, func(t *testing.T, n *standingNodes, d *shown) {
			n.exec(t, `UPDATE certificate SET state = 'superseded', accept_until = 1`+one, d.id)
			n.saved(t, d)
		}},
		{shortLived, []string{"recovery"}, nil, func(t *testing.T, n *standingNodes, d *shown) {
			if d.maker != "" { // it is its maker who says until when, in the certificate itself
				time.Sleep(time.Until(d.leaf.cert.NotAfter.Add(time.Second)))
				return
			}
			n.exec(t, `UPDATE certificate SET not_after = $2`+one, d.id, time.Now().Add(-time.Minute).UnixMicro())
			n.saved(t, d)
		}},
		{"the fleet accepts no certificates", renewals, renewals, func(t *testing.T, n *standingNodes, d *shown) {
			n.rules(t, d, func(r *api.Rules) { r.Access.Kinds = []string{"secret", "token"} })
		}},
		{"the maker's CA left the fleet", all, nil, func(t *testing.T, n *standingNodes, d *shown) {
			n.rules(t, d, func(r *api.Rules) { r.Authorities = nil })
		}},
		{"the maker revoked the certificate", all, nil, func(t *testing.T, n *standingNodes, d *shown) {
			if d.maker == "" {
				return
			}
			line := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.line.cert.Raw}))
			list := api.PutCRLs{CRLs: [][]byte{d.line.list(t, d.leaf.cert)}, Intermediates: []string{line}}
			if _, err := n.asked.Admin.PutCRLs(t.Context(), d.maker, list); err != nil {
				t.Fatal(err)
			}
		}},
		{"the maker revoked the CA of its line", all, nil, func(t *testing.T, n *standingNodes, d *shown) {
			if d.maker == "" {
				return
			}
			if _, err := n.asked.Admin.PutCRLs(t.Context(), d.maker, api.PutCRLs{CRLs: [][]byte{d.root.list(t, d.line.cert)}}); err != nil {
				t.Fatal(err)
			}
		}},
		{"factory certificates may not connect", all, nil, func(t *testing.T, n *standingNodes, d *shown) {
			n.rules(t, d, func(r *api.Rules) { r.Connect = false })
		}},
		{"its authority is retired", nil, nil, func(t *testing.T, n *standingNodes, d *shown) { // the last: it is everybody's
			id := d.maker
			if id == "" {
				id = "issuing"
			}
			n.exec(t, `UPDATE authority SET state = 'retired' WHERE id = $1`, id)
			n.saved(t, d)
		}},
	}
}

type standingReason struct {
	name         string
	ours, makers []string // where a certificate of ours, or of the maker, is good
	happens      func(*testing.T, *standingNodes, *shown)
}

// cutIn bounds from an act to the end of the sessions on every node.
const cutIn = time.Second

// TestCertificateIsGoodAtAllDoorsOrNone has each reason happen at one node, and asks all
// doors of the other one.
func TestCertificateIsGoodAtAllDoorsOrNone(t *testing.T) {
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = backend.Close() })
	go func() {
		for {
			conn, err := backend.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, banner)
		}
	}()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(hookSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		n := &standingNodes{asked: asked, other: other, db: asked.Database()}
		for i, reason := range reasonsNotGood() {
			for _, kind := range []string{"makers", "ours"} {
				good := reason.ours
				if kind == "makers" {
					good = reason.makers
				}
				t.Run(reason.name+"/"+kind, func(t *testing.T) {
					name := fmt.Sprintf("%s-%d", kind, i)
					if reason.name == shortLived {
						name += "-" + shortLived
					}
					d := n.device(t, name, kind == "makers")
					reason.happens(t, n, d)
					if slices.Contains(good, "live") {
						lives(t, d.id, d.live)
					} else {
						endsWithin(t, "live session", d.live, cutIn)
					}
					for _, door := range n.doors() {
						if got := door.asks(t, d); got != slices.Contains(good, door.name) {
							t.Errorf("%s: let in %v, want %v", door.name, got, !got)
						}
					}
				})
			}
		}
	}, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.Recovery, c.Listeners.Hook = "127.0.0.1:0", "127.0.0.1:0"
		c.Hooks = []config.Hook{{Name: "b", Kind: "generic", Secret: config.Secret("file:" + secret)}}
		c.Tunnels = []config.Tunnel{{Name: "plc", Listen: "127.0.0.1:0", To: backend.Addr().String(), Plain: true}}
	}})
}
