package interop

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

// examplePages serves examples/browser as a web server would, with mqtt.js from npm.
func examplePages(t *testing.T) *httptest.Server {
	t.Helper()
	dir := filepath.Join(moduleRoot, "examples", "browser")
	library := filepath.Join(dir, "node_modules", "mqtt", "dist", "mqtt.min.js")
	if _, err := os.Stat(library); err != nil {
		kit.Missing(t, "%s is not there", "mqtt.js: npm ci --prefix examples/browser")
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.HandleFunc("GET /mqtt.min.js", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, library) })
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// chromium starts a browser that trusts the certificate of server, and no other
// that its system does not.
func chromium(t *testing.T, server string, roots *x509.CertPool) context.Context {
	t.Helper()
	bin, err := exec.LookPath("chromium")
	if err != nil {
		kit.Missing(t, "%s is not there", "chromium")
	}
	c, err := tls.Dial("tcp", server, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	key := sha256.Sum256(c.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	_ = c.Close()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(bin), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-gpu", true),
		chromedp.WindowSize(600, 640))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// valve is a device that opens and closes, and says so.
func valve(t *testing.T, s *countersigntest.Server, device string) {
	t.Helper()
	id := s.Enroll(t, device)
	c := paho.NewClient(paho.NewClientOptions().AddBroker("ssl://" + s.Broker(t)).SetClientID(device).SetTLSConfig(id.TLSConfig()).
		SetAutoReconnect(false).SetConnectTimeout(patience))
	if k := c.Connect(); !k.WaitTimeout(patience) || k.Error() != nil {
		t.Fatalf("connect the valve: %v", k.Error())
	}
	t.Cleanup(func() { c.Disconnect(100) })
	k := c.Subscribe("devices/"+device+"/down/valve", 1, func(_ paho.Client, m paho.Message) {
		c.Publish("devices/"+device+"/up/valve", 1, false, append([]byte("is "), m.Payload()...))
	})
	if !k.WaitTimeout(patience) || k.Error() != nil {
		t.Fatalf("subscribe the valve: %v", k.Error())
	}
}

// becomes waits until an element of the page holds a text.
func becomes(id, text string) chromedp.Action[chromedp.Void] {
	return until(`document.getElementById("` + id + `").textContent.includes("` + text + `")`)
}

// until waits for a condition in the page.
func until(condition string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Poll[bool](condition, chromedp.WithPollingTimeout(patience))(ctx, t)
		return chromedp.Void{}, err
	}
}

func TestBrowserControlsADeviceUntilItIsRevoked(t *testing.T) {
	pages := examplePages(t)
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.WebSocket = "127.0.0.1:0"
		c.WebSocket.Origins = []string{pages.URL}
	}})
	u, err := url.Parse(s.Endpoints().WebSocket)
	if err != nil {
		t.Fatal(err)
	}
	server := "localhost:" + u.Port()
	ctx := chromium(t, server, s.Roots)
	for _, tt := range []struct {
		name, device string
		take         func(device, token string) error
	}{
		{"the operator's token", "pump-1", func(_, token string) error {
			_, err := s.Admin.RevokeOperatorToken(t.Context(), token)
			return err
		}},
		{"the device", "pump-2", func(device, _ string) error {
			_, err := s.Admin.Revoke(t.Context(), device, api.Revoke{Reason: "keyCompromise"})
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			valve(t, s, tt.device)
			token, err := s.Admin.CreateOperatorToken(t.Context(), api.NewOperatorToken{Name: "web", Role: "operator", TTLSeconds: 600})
			if err != nil {
				t.Fatal(err)
			}
			err = chromedp.Do(ctx,
				chromedp.Navigate(pages.URL), chromedp.WaitReady(chromedp.CSS("#token")),
				chromedp.SetValue(chromedp.CSS("#server"), server), chromedp.SetValue(chromedp.CSS("#device"), tt.device), chromedp.SetValue(chromedp.CSS("#token"), token.Secret),
				chromedp.Click(chromedp.CSS("#sign-in button")), becomes("state", "connected"),
				chromedp.Click(chromedp.CSS("#open")), becomes("valve", "is open"),
				chromedp.Click(chromedp.CSS("#close")), becomes("valve", "is close"),
			)
			keep(ctx, t, "controls.png")
			if err != nil {
				t.Fatalf("control %s from the page: %v (the page says %q)", tt.device, err, said(ctx))
			}
			began := time.Now()
			if err := tt.take(tt.device, token.ID); err != nil {
				t.Fatal(err)
			}
			err = chromedp.Do(ctx, until(`document.getElementById("open").disabled`))
			took := time.Since(began)
			if err != nil {
				t.Fatalf("the page still controls %s: %v (the page says %q)", tt.device, err, said(ctx))
			}
			t.Logf("from the request to the page that knows: %v", took)
			// It tries to come back by itself, and is told why it may not.
			if err := chromedp.Do(ctx, becomes("state", "refused")); err != nil {
				t.Errorf("the page says %q, want that it was refused: %v", said(ctx), err)
			}
			for _, one := range s.Sessions() {
				if strings.HasPrefix(one.Device, "operator/") {
					t.Errorf("session of %s is still open", one.Device)
				}
			}
		})
	}
}

// countPings counts the pings that the page's client sends, PINGREQ of MQTT, and
// what the page's policy forbids.
const countPings = `
window.pings = 0
window.forbidden = ''
document.addEventListener('securitypolicyviolation', (e) => { window.forbidden += e.violatedDirective + ' ' + e.blockedURI + '; ' })
const send = WebSocket.prototype.send
WebSocket.prototype.send = function (data) {
  const octets = new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength)
  if (octets.length === 2 && octets[0] === 0xc0) window.pings++
  return send.call(this, data)
}
true`

// TestBrowserStaysConnectedBeyondItsKeepAlive holds the one session of the page for
// several times as long as its client may be silent.
func TestBrowserStaysConnectedBeyondItsKeepAlive(t *testing.T) {
	pages := examplePages(t)
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.WebSocket = "127.0.0.1:0"
		c.WebSocket.Origins = []string{pages.URL}
	}})
	u, err := url.Parse(s.Endpoints().WebSocket)
	if err != nil {
		t.Fatal(err)
	}
	server := "localhost:" + u.Port()
	ctx := chromium(t, server, s.Roots)
	s.Enroll(t, "pump-1")
	token, err := s.Admin.CreateOperatorToken(t.Context(), api.NewOperatorToken{Name: "web", Role: "operator", TTLSeconds: 600})
	if err != nil {
		t.Fatal(err)
	}
	const keepAlive = 3 * time.Second
	err = chromedp.Do(ctx,
		chromedp.Navigate(pages.URL+"?keepalive=3"), chromedp.WaitReady(chromedp.CSS("#token")), chromedp.Evaluate[chromedp.Void](countPings),
		chromedp.SetValue(chromedp.CSS("#server"), server), chromedp.SetValue(chromedp.CSS("#device"), "pump-1"), chromedp.SetValue(chromedp.CSS("#token"), token.Secret),
		chromedp.Click(chromedp.CSS("#sign-in button")), becomes("state", "connected"),
	)
	if err != nil {
		t.Fatalf("sign in: %v (the page says %q)", err, said(ctx))
	}
	sessions := func() (ids []string) {
		for _, one := range s.Sessions() {
			ids = append(ids, one.ID)
		}
		return ids
	}
	before, began := sessions(), time.Now()
	// The server ends a session that was silent for one and a half times its keep-alive.
	err = chromedp.Do(ctx, until(`window.forbidden !== "" || window.pings >= 4`))
	forbidden, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`window.forbidden`))
	if err != nil || forbidden != "" {
		t.Fatalf("the page sends no pings: %v; its policy forbids %q; it says %q", err, forbidden, said(ctx))
	}
	if lasted := time.Since(began); lasted < keepAlive*3/2 {
		t.Errorf("four pings in %v, want them spread over the keep-alive of %v", lasted, keepAlive)
	}
	if after := sessions(); len(before) != 1 || !slices.Equal(before, after) || said(ctx) != "connected" {
		t.Errorf("sessions: got %v, then %v, the page says %q, want the same one throughout", before, after, said(ctx))
	}
}

// said is what the page says of its connection.
func said(ctx context.Context) string {
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("#state")))
	if err != nil {
		return err.Error()
	}
	return text
}

// keep leaves a picture for whoever wants to look, where COUNTERSIGN_PICTURES names a folder.
func keep(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("COUNTERSIGN_PICTURES")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), png, 0o600)
	}
	if err != nil {
		t.Error(err)
	}
}
