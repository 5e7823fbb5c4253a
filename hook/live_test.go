package hook_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
)

// patience is how long anything may take on a machine that has much else to do.
const patience = 20 * time.Second

// eventually polls until ok, and returns how long it took.
func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for time.Since(began) < patience {
		if ok() {
			return time.Since(began)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("%s did not happen within %s", what, patience)
	return 0
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func secretFile(t *testing.T, text []byte) config.Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Secret("file:" + path)
}

// authority runs a server with one hook.
func authority(t *testing.T, h config.Hook) *countersigntest.Server {
	t.Helper()
	return countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.Hook = "127.0.0.1:0"
		c.Hooks = []config.Hook{h}
	}})
}

// serverPair is a certificate for 127.0.0.1 that its own test trusts, as files.
func serverPair(t *testing.T) (cert, key string, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	return cert, key, roots
}

// deviceTLS is how an enrolled device speaks to a foreign broker.
func deviceTLS(id *sdk.Identity, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots,
		Certificates: []tls.Certificate{{Certificate: id.Path(), PrivateKey: id.Key()}},
	}
}

// device is an MQTT client that does not come back by itself.
type device struct {
	mqtt.Client
	lost chan time.Time
}

// login is what a device sends in CONNECT.
type login struct{ id, user, password string }

// dial connects, and returns the error of a refusal.
func dial(t *testing.T, url string, as login, config *tls.Config) (*device, error) {
	t.Helper()
	d := &device{lost: make(chan time.Time, 1)}
	o := mqtt.NewClientOptions().AddBroker(url).SetClientID(as.id).SetUsername(as.user).SetPassword(as.password).SetTLSConfig(config).
		SetAutoReconnect(false).SetConnectTimeout(patience).SetProtocolVersion(4).
		SetConnectionLostHandler(func(mqtt.Client, error) { d.lost <- time.Now() })
	d.Client = mqtt.NewClient(o)
	token := d.Connect()
	if !token.WaitTimeout(patience) {
		return nil, errors.New("no answer to CONNECT")
	}
	if err := token.Error(); err != nil {
		return nil, err
	}
	t.Cleanup(func() { d.Disconnect(10) })
	return d, nil
}

// dialUntil connects as soon as the broker is up.
func dialUntil(t *testing.T, url string, as login, config *tls.Config) *device {
	t.Helper()
	var d *device
	var err error
	for began := time.Now(); time.Since(began) < patience; time.Sleep(100 * time.Millisecond) {
		if d, err = dial(t, url, as, config); err == nil {
			return d
		}
	}
	t.Fatalf("connect as %s: %v", as.id, err)
	return nil
}

// inbox collects messages.
type inbox struct {
	mu   sync.Mutex
	text []string
}

func (i *inbox) add(_ mqtt.Client, m mqtt.Message) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.text = append(i.text, m.Topic()+" "+string(m.Payload()))
}

func (i *inbox) has(text string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Contains(i.text, text)
}

// subscribe reports whether the broker granted the filter.
func (d *device) subscribe(t *testing.T, filter string, to *inbox) bool {
	t.Helper()
	token, ok := d.Subscribe(filter, 1, to.add).(*mqtt.SubscribeToken)
	if !ok || !token.WaitTimeout(patience) {
		t.Logf("no answer to SUBSCRIBE %s", filter)
		return false
	}
	return token.Error() == nil && token.Result()[filter] < 128
}

func (d *device) publish(topic, text string) error {
	token := d.Publish(topic, 1, false, text)
	if !token.WaitTimeout(patience) {
		return errors.New("no answer to PUBLISH")
	}
	return token.Error()
}

func revoke(t *testing.T, s *countersigntest.Server, id string) {
	t.Helper()
	if _, err := s.Admin.Revoke(t.Context(), id, api.Revoke{Reason: "keyCompromise"}); err != nil {
		t.Fatalf("revoke %s: %v", id, err)
	}
}

func suspend(t *testing.T, s *countersigntest.Server, id string) {
	t.Helper()
	if _, err := s.Admin.Suspend(t.Context(), id, api.Act{Note: "test"}); err != nil {
		t.Fatalf("suspend %s: %v", id, err)
	}
}

func reactivate(t *testing.T, s *countersigntest.Server, id string) {
	t.Helper()
	if _, err := s.Admin.Reactivate(t.Context(), id, api.Act{Note: "test"}); err != nil {
		t.Fatalf("reactivate %s: %v", id, err)
	}
}

// shortDir is for the path of a Unix socket, which may have 107 octets only.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hk") //nolint:usetesting // t.TempDir is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// revoked revokes the device and waits until its session is over.
func (d *device) revoked(t *testing.T, s *countersigntest.Server, id string) time.Duration {
	t.Helper()
	began := time.Now()
	revoke(t, s, id)
	select {
	case at := <-d.lost:
		return at.Sub(began)
	case <-time.After(patience):
		t.Fatalf("the session of %s went on for %s after its revocation", id, patience)
		return 0
	}
}

// withSecret returns an enrolled device a secret to connect with.
func withSecret(t *testing.T, s *countersigntest.Server, id string) string {
	t.Helper()
	kinds := []string{string(countersign.AccessCertificate), string(countersign.AccessSecret)}
	if _, err := s.Admin.PutFleet(t.Context(), countersign.DefaultFleet, api.PutFleet{AccessKinds: &kinds}); err != nil {
		t.Fatalf("let the fleet take secrets: %v", err)
	}
	s.Enroll(t, id)
	issued, err := s.Admin.CreateSecret(t.Context(), id, api.NewSecret{})
	if err != nil {
		t.Fatalf("give %s a secret: %v", id, err)
	}
	return issued.Text
}

// kicked waits for the event of a kick and returns it.
func kicked(t *testing.T, s *countersigntest.Server, id string) api.Event {
	t.Helper()
	var found api.Event
	eventually(t, "session.kicked", func() bool {
		for e, err := range s.Admin.DeviceEvents(t.Context(), id, api.Order{}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == string(countersign.SessionKicked) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// running is a foreign server.
type running struct {
	name string
	out  output
	done chan struct{} // closed once it has ended
}

// program runs a foreign server until the test ends, and shows its output if
// the test fails.
func program(t *testing.T, name string, args ...string) *running {
	t.Helper()
	return programIn(t, nil, name, args...)
}

// programIn is program with variables in the environment, besides those of the test.
func programIn(t *testing.T, env []string, name string, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	p := &running{name: name, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	cmd.WaitDelay = patience
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // some are scripts around the program
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = cmd.Wait() // its output shows why
		close(p.done)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what its script left behind
		if t.Failed() {
			t.Logf("%s printed:\n%s", name, &p.out)
		}
	})
	return p
}

// ended reports whether the server has ended by itself.
func (p *running) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// listens waits until the server accepts connections at the port. It returns an
// error as soon as the server has ended, or once it has taken longer than most.
func (p *running) listens(port int, most time.Duration) error {
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", loopback(port), patience)
		if err == nil {
			_ = c.Close()
		}
		switch {
		case p.ended():
			return fmt.Errorf("%s ended before it served:\n%s", p.name, &p.out)
		case err == nil:
			return nil
		case time.Since(began) > most:
			return fmt.Errorf("%s does not serve after %v: %w", p.name, most, err)
		}
	}
}

// output is a buffer that is read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func pemCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
