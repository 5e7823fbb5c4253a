package device

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

const (
	// stepTime bounds each step of a device: one that hangs is a failure.
	stepTime = 30 * time.Second
	// inboxSize is how many messages wait to be received; a device of these is sent few.
	inboxSize = 16
)

// Login is how a client makes itself known.
type Login struct {
	From     string      // address of this machine; empty: any
	TLS      *tls.Config // with the client certificate; nil: none is shown
	ClientID string
	Username string // empty: neither user name nor password
	Password []byte
}

// Session is an MQTT 5 session, begun anew.
type Session struct {
	client *paho.Client
	conn   net.Conn
	inbox  chan string
	once   sync.Once // of the end
	ended  chan struct{}
	end    End // once ended is closed
}

// End is how a session ended.
type End struct {
	At     time.Time
	Code   byte // of the server's DISCONNECT; 0 where the connection broke or the device left
	Reason string
}

// Refusal is a CONNACK with a reason code of 0x80 or above.
type Refusal struct {
	Code   byte
	Reason string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("refused with reason code 0x%02x: %s", r.Code, r.Reason)
}

// Open opens a session. The error is a *Refusal where the broker answered one.
func (b Broker) Open(ctx context.Context, l Login) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	conn, err := b.Dial(ctx, l.From, l.TLS)
	if err != nil {
		return nil, err
	}
	s := &Session{conn: conn, inbox: make(chan string, inboxSize), ended: make(chan struct{})}
	s.client = paho.NewClient(paho.ClientConfig{
		// Without this the library's first PINGREQ may go into the middle of another packet.
		Conn:          packets.NewThreadSafeConn(conn),
		PacketTimeout: stepTime,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			select {
			case s.inbox <- string(p.Packet.Payload):
			default:
			}
			return true, nil
		}},
		OnServerDisconnect: func(p *paho.Disconnect) {
			reason := ""
			if p.Properties != nil {
				reason = p.Properties.ReasonString
			}
			s.over(p.ReasonCode, reason)
		},
		OnClientError: func(err error) { s.over(0, err.Error()) },
	})
	p := &paho.Connect{ClientID: l.ClientID, KeepAlive: 60, CleanStart: true}
	if l.Username != "" {
		p.UsernameFlag, p.Username, p.PasswordFlag, p.Password = true, l.Username, true, l.Password
	}
	ack, err := s.client.Connect(ctx, p)
	if err == nil {
		return s, nil
	}
	_ = conn.Close()
	if ack == nil || ack.ReasonCode < 0x80 {
		return nil, fmt.Errorf("connect: %w", err)
	}
	r := &Refusal{Code: ack.ReasonCode}
	if ack.Properties != nil {
		r.Reason = ack.Properties.ReasonString
	}
	return nil, r
}

// over ends the session; what came first counts.
func (s *Session) over(code byte, reason string) {
	s.once.Do(func() {
		s.end = End{At: time.Now(), Code: code, Reason: reason} //nolint:forbidigo // measures the cut as the device sees it
		close(s.ended)
	})
}

// Subscribe subscribes to a filter at QoS 1. Receive returns what comes.
func (s *Session) Subscribe(ctx context.Context, filter string) error {
	ctx, cancel := s.whileUp(ctx)
	defer cancel()
	_, err := s.client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	if err == nil {
		return nil
	}
	s.Leave()
	return fmt.Errorf("subscribe: %w; the session ended with reason code 0x%02x: %s", err, s.end.Code, s.end.Reason)
}

// Publish sends a message at QoS 1 and waits until it is acknowledged.
func (s *Session) Publish(ctx context.Context, topic, payload string) error {
	ctx, cancel := s.whileUp(ctx)
	defer cancel()
	_, err := s.client.Publish(ctx, &paho.Publish{QoS: 1, Topic: topic, Payload: []byte(payload)})
	return err
}

// whileUp is ctx until stepTime has passed or the session has ended, on which the
// library may wait for an answer.
func (s *Session) whileUp(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	go func() {
		select {
		case <-s.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// Receive waits for the next message.
func (s *Session) Receive(ctx context.Context) (string, error) {
	select {
	case text := <-s.inbox:
		return text, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Ended is closed at the end of the session.
func (s *Session) Ended() <-chan struct{} { return s.ended }

// End waits until the session has ended and returns how.
func (s *Session) End(ctx context.Context) (End, error) {
	select {
	case <-s.ended:
		return s.end, nil
	case <-ctx.Done():
		return End{}, fmt.Errorf("the session is still up: %w", ctx.Err())
	}
}

// Leave ends the session with DISCONNECT; it may have ended already. The library reports
// neither this end nor a failed write before it.
func (s *Session) Leave() {
	_ = s.client.Disconnect(&paho.Disconnect{})
	s.over(0, "the device left")
}

// Lose closes the connection without a word, as a broken line does.
func (s *Session) Lose() { _ = s.conn.Close() }
