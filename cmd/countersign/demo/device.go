package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign/sdk"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

// device is a device of the demo: an identity of its own and, while it is
// connected, an MQTT 5 session.
type device struct {
	*sdk.Identity
	broker string // host:port

	mu      sync.Mutex
	client  *paho.Client
	inbox   chan string
	dropped chan dropped
}

// dropped is how the server ended a session.
type dropped struct {
	at     time.Time
	code   byte
	reason string
}

// refusal is a CONNACK that says no.
type refusal struct {
	code   byte
	reason string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("refused with reason code 0x%02x: %s", r.code, r.reason)
}

// connect opens a session and subscribes to the device's own topics.
func (d *device) connect(ctx context.Context) error {
	config := d.TLSConfig()
	config.ServerName, _, _ = strings.Cut(d.broker, ":")
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", d.broker)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	inbox, ended := make(chan string, 16), make(chan dropped, 1)
	// The client library may wait for an answer on a connection that has ended.
	asking, stop := context.WithCancel(ctx)
	defer stop()
	tell := func(v dropped) {
		stop()
		select {
		case ended <- v:
		default:
		}
	}
	client := paho.NewClient(paho.ClientConfig{
		// Without this the library's first PINGREQ may go into the middle of another packet.
		Conn:          packets.NewThreadSafeConn(conn),
		PacketTimeout: stepTime,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			select {
			case inbox <- string(p.Packet.Payload):
			default:
			}
			return true, nil
		}},
		OnServerDisconnect: func(p *paho.Disconnect) {
			v := dropped{at: time.Now(), code: p.ReasonCode} //nolint:forbidigo // measures the cut as the device sees it
			if p.Properties != nil {
				v.reason = p.Properties.ReasonString
			}
			tell(v)
		},
		OnClientError: func(err error) {
			tell(dropped{at: time.Now(), reason: err.Error()}) //nolint:forbidigo // as above
		},
	})
	ack, err := client.Connect(ctx, &paho.Connect{ClientID: d.Device(), KeepAlive: 60, CleanStart: true})
	if err != nil {
		_ = conn.Close()
		if ack != nil && ack.ReasonCode >= 0x80 {
			r := &refusal{code: ack.ReasonCode}
			if ack.Properties != nil {
				r.reason = ack.Properties.ReasonString
			}
			return r
		}
		return fmt.Errorf("connect: %w", err)
	}
	_, err = client.Subscribe(asking, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "devices/" + d.Device() + "/down/#", QoS: 1}}})
	if err != nil {
		_ = client.Disconnect(&paho.Disconnect{})
		select {
		case v := <-ended:
			return fmt.Errorf("subscribe: the session ended with reason code 0x%02x: %s", v.code, v.reason)
		default:
			return fmt.Errorf("subscribe: %w", err)
		}
	}
	d.mu.Lock()
	d.client, d.inbox, d.dropped = client, inbox, ended
	d.mu.Unlock()
	return nil
}

// publish sends a message upwards at QoS 1.
func (d *device) publish(ctx context.Context, text string) error {
	client := d.session()
	if client == nil {
		return errors.New("the device is not connected")
	}
	_, err := client.Publish(ctx, &paho.Publish{QoS: 1, Topic: "devices/" + d.Device() + "/up/hello", Payload: []byte(text)})
	return err
}

func (d *device) session() *paho.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.client
}

// receive waits for a message from above.
func (d *device) receive(ctx context.Context) (string, error) {
	d.mu.Lock()
	inbox := d.inbox
	d.mu.Unlock()
	select {
	case text := <-inbox:
		return text, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// end waits until the server has ended the session.
func (d *device) end(ctx context.Context) (dropped, error) {
	d.mu.Lock()
	ended := d.dropped
	d.mu.Unlock()
	select {
	case v := <-ended:
		return v, nil
	case <-ctx.Done():
		return dropped{}, fmt.Errorf("the session is still up: %w", ctx.Err())
	}
}

// leave ends the session from the device's side, if there is one.
func (d *device) leave() {
	d.mu.Lock()
	client := d.client
	d.client = nil
	d.mu.Unlock()
	if client != nil {
		_ = client.Disconnect(&paho.Disconnect{}) // it may be gone already
	}
}
