package simulate

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/sdk"
)

const (
	// stepTime bounds each step of a device: one that hangs is a failure.
	stepTime = 30 * time.Second
	// publishEvery is about how often an honest device publishes.
	publishEvery = 5 * time.Second
	// retryMin and retryMax bound the pause before an honest device tries again.
	retryMin = 200 * time.Millisecond
	retryMax = 5 * time.Second
	// Of a thousand pauses between messages so many end with a broken line, with
	// another address, or with a renewal.
	breaksOf1000, roamsOf1000, renewsOf1000 = 15, 3, 4
)

// broker is where the sessions go.
type broker struct{ addr, name string }

// newBroker finds the gateway on loopback, since only there a process has many
// addresses of its own.
func newBroker(endpoint string) (broker, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Port() == "" {
		return broker{}, countersign.Errorf(countersign.BadRequest, "the server has no MQTT listener").WithNext("set listeners.mqtt")
	}
	return broker{addr: net.JoinHostPort("127.0.0.1", u.Port()), name: u.Hostname()}, nil
}

// device is a simulated one.
type device struct {
	*sdk.Identity
	run    *run
	from   string        // its address
	stolen *sdk.Identity // a copy of its key, as somebody took it

	mu      sync.Mutex
	session *session
}

// login is how a session is opened.
type login struct {
	from     string
	tls      *tls.Config // nil: no client certificate
	clientID string
	username string
	password []byte
}

// session is one MQTT 5 connection.
type session struct {
	client *paho.Client
	conn   net.Conn
	ended  chan struct{} // closed at its end, whoever ended it
}

// open connects. A refusal is an error.
func (r *run) open(ctx context.Context, l login) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	config := l.tls
	if config == nil {
		config = &tls.Config{RootCAs: r.Roots, MinVersion: tls.VersionTLS12}
	}
	config.ServerName = r.broker.name
	dialer := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(l.from)}}, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", r.broker.addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	s := &session{conn: conn, ended: make(chan struct{})}
	end := sync.OnceFunc(func() { close(s.ended) })
	s.client = paho.NewClient(paho.ClientConfig{
		Conn:               packets.NewThreadSafeConn(conn),
		PacketTimeout:      stepTime,
		OnServerDisconnect: func(*paho.Disconnect) { end() },
		OnClientError:      func(error) { end() },
	})
	p := &paho.Connect{ClientID: l.clientID, KeepAlive: 60, CleanStart: true}
	if l.username != "" {
		p.UsernameFlag, p.Username, p.PasswordFlag, p.Password = true, l.username, true, l.password
	}
	ack, err := s.client.Connect(ctx, p)
	if err != nil {
		_ = conn.Close()
		if ack != nil && ack.Properties != nil && ack.Properties.ReasonString != "" {
			return nil, fmt.Errorf("connect: %s", ack.Properties.ReasonString)
		}
		return nil, fmt.Errorf("connect: %w", err)
	}
	return s, nil
}

// leave ends the session as a device does.
func (s *session) leave() { _ = s.client.Disconnect(&paho.Disconnect{}) }

// lose ends it as a broken line does.
func (s *session) lose() { _ = s.conn.Close() }

func (s *session) publish(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	_, err := s.client.Publish(ctx, &paho.Publish{QoS: 1, Topic: "devices/" + device + "/up/sim", Payload: []byte("21.5")})
	return err
}

// connect opens a session with the device's certificate.
func (d *device) connect(ctx context.Context) (*session, error) {
	return d.run.open(ctx, login{from: d.from, tls: d.TLSConfig(), clientID: d.Device()})
}

// live is the life of an honest device: it publishes, loses its line, comes back,
// sometimes from another address of its site, and renews its certificate.
func (d *device) live(ctx context.Context, random *rand.Rand) {
	if !wait(ctx, time.Duration(random.Int64N(int64(2*time.Second)))) {
		return
	}
	for first := true; ctx.Err() == nil; first = false {
		s := d.come(ctx, random)
		if s == nil {
			return
		}
		if !first {
			d.run.reconnects.Add(1)
		}
		d.work(ctx, s, random)
	}
}

// come connects, however often it takes; nil once ctx has ended.
func (d *device) come(ctx context.Context, random *rand.Rand) *session {
	for pause := retryMin; ctx.Err() == nil; pause = min(2*pause, retryMax) {
		s, err := d.connect(ctx)
		if err == nil {
			d.mu.Lock()
			d.session = s
			d.mu.Unlock()
			return s
		}
		if ctx.Err() == nil {
			d.run.refused.Add(1)
		}
		wait(ctx, pause/2+time.Duration(random.Int64N(int64(pause))))
	}
	return nil
}

// work publishes until the session ends.
func (d *device) work(ctx context.Context, s *session, random *rand.Rand) {
	for {
		select {
		case <-ctx.Done():
			s.leave()
			return
		case <-s.ended:
			return
		case <-time.After(publishEvery/2 + time.Duration(random.Int64N(int64(publishEvery)))):
		}
		if s.publish(ctx, d.Device()) == nil {
			d.run.messages.Add(1)
		}
		switch n := random.IntN(1000); {
		case n < breaksOf1000:
			s.lose()
			return
		case n < breaksOf1000+roamsOf1000:
			s.lose()
			d.from = d.run.address(100, 1+random.IntN(250)) // what a carrier gives it
			d.run.befriend(d.from)
			return
		case n < breaksOf1000+roamsOf1000+renewsOf1000:
			if d.Renew(ctx) == nil {
				d.run.renewals.Add(1)
			}
			s.leave()
			return
		}
	}
}

// befriend notes an address of honest devices.
func (r *run) befriend(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.honest[addr] = true
}

// current is the device's session; nil before its first.
func (d *device) current() *session {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session
}

// wait pauses; false once ctx has ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// sasToken signs as Azure's SDKs do.
func sasToken(key []byte, device string, expiry time.Time) []byte {
	resource := url.QueryEscape("countersign/devices/" + device)
	h := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(h, "%s\n%d", resource, expiry.Unix()) // a hash takes everything
	return fmt.Appendf(nil, "SharedAccessSignature sr=%s&sig=%s&se=%d",
		resource, url.QueryEscape(base64.StdEncoding.EncodeToString(h.Sum(nil))), expiry.Unix())
}
