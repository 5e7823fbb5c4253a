package hook

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

const (
	dynsecTopic    = "$CONTROL/dynamic-security/v1"
	dynsecResponse = dynsecTopic + "/response"
	// dynsecNote marks the clients that Countersign created to keep a device out.
	dynsecNote = "made by countersign to shut the device out"
	// dynsecUnknown is the plug-in's error for a user name that it does not have.
	dynsecUnknown = "Client not found"
	// dynsecQuiesce is how long, in milliseconds, a client that disconnects waits for
	// messages under way; there are none.
	dynsecQuiesce = 10
	// maxDynsecAnswer bounds one answer of the plug-in.
	maxDynsecAnswer = 64 << 10
)

// Dynsec is how Mosquitto's dynamic security plug-in is reached: over MQTT, as a
// client with the role that may use its control topic.
type Dynsec struct {
	URL    string // mqtt:// or mqtts://
	User   string
	Secret []byte
	TLS    *tls.Config
}

type dynsecCommand struct {
	Command     string `json:"command"`
	Username    string `json:"username"`
	Note        string `json:"textdescription,omitempty"`
	Correlation string `json:"correlationData,omitempty"`
}

type dynsecAnswer struct {
	Command     string `json:"command"`
	Error       string `json:"error"`
	Correlation string `json:"correlationData"`
	Data        struct {
		Client struct {
			Disabled bool   `json:"disabled"`
			Note     string `json:"textdescription"`
		} `json:"client"`
	} `json:"data"`
}

// dynsec is one connection to the plug-in, opened when it is needed.
type dynsec struct {
	Dynsec

	mu      sync.Mutex // one exchange at a time
	client  mqtt.Client
	answers chan []dynsecAnswer
}

// KickMosquitto ends sessions by disabling the device's user name in the dynamic
// security plug-in, which also keeps it out, until the device is active again. The
// plug-in does not report how many sessions that ended.
func KickMosquitto(hook string, o Dynsec) *Driver {
	d := &dynsec{Dynsec: o}
	return &Driver{Hook: hook, kick: d.kick, restore: d.restore, close: d.close, uncounted: true}
}

func (d *dynsec) kick(ctx context.Context, t target) (int, error) {
	n := 0
	for _, user := range t.users() {
		now, err := d.do(ctx, dynsecCommand{Command: "getClient", Username: user})
		if err != nil && !isUnknown(err) {
			return n, err
		}
		known := err == nil
		if known && now[0].Data.Client.Disabled {
			continue // it is out already
		}
		var list []dynsecCommand
		if !known {
			list = append(list, dynsecCommand{Command: "createClient", Username: user, Note: dynsecNote})
		}
		list = append(list, dynsecCommand{Command: "disableClient", Username: user})
		switch {
		case !t.whole && known:
			list = append(list, dynsecCommand{Command: "enableClient", Username: user})
		case !t.whole:
			list = append(list, dynsecCommand{Command: "deleteClient", Username: user})
		}
		if _, err := d.do(ctx, list...); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// restore enables the device again.
func (d *dynsec) restore(ctx context.Context, device string) error {
	now, err := d.do(ctx, dynsecCommand{Command: "getClient", Username: device})
	switch {
	case isUnknown(err):
		return nil
	case err != nil:
		return err
	case now[0].Data.Client.Note == dynsecNote:
		_, err = d.do(ctx, dynsecCommand{Command: "deleteClient", Username: device})
	default:
		_, err = d.do(ctx, dynsecCommand{Command: "enableClient", Username: device})
	}
	return err
}

// dynsecError is the plug-in's answer to a command that it refuses.
type dynsecError struct{ command, text string }

func (e *dynsecError) Error() string {
	return fmt.Sprintf("the dynamic security plug-in refused %s: %s", e.command, plain(e.text))
}

func isUnknown(err error) bool {
	e, ok := errors.AsType[*dynsecError](err)
	return ok && e.text == dynsecUnknown
}

// do sends commands and waits for the answers to all of them.
func (d *dynsec) do(ctx context.Context, commands ...dynsecCommand) ([]dynsecAnswer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.connect(ctx); err != nil {
		return nil, err
	}
	mark := rand.Text()
	for i := range commands {
		commands[i].Correlation = mark
	}
	text, err := json.Marshal(map[string][]dynsecCommand{"commands": commands})
	if err != nil {
		return nil, err
	}
	got, err := d.exchange(ctx, mark, text)
	if err != nil {
		d.drop()
		return nil, err
	}
	if len(got) != len(commands) {
		return nil, errors.New("the dynamic security plug-in left commands without an answer")
	}
	for _, a := range got {
		if a.Error != "" {
			return nil, &dynsecError{plain(a.Command), a.Error}
		}
	}
	return got, nil
}

func (d *dynsec) exchange(ctx context.Context, mark string, text []byte) ([]dynsecAnswer, error) {
	if err := await(ctx, d.client.Publish(dynsecTopic, 1, false, text)); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, errors.New("the dynamic security plug-in does not answer: may the user use its control topic?")
		case got := <-d.answers:
			if len(got) > 0 && got[0].Correlation == mark {
				return got, nil
			}
		}
	}
}

func (d *dynsec) connect(ctx context.Context) error {
	if d.client != nil && d.client.IsConnectionOpen() {
		return nil
	}
	d.drop()
	answers := make(chan []dynsecAnswer, 1)
	o := mqtt.NewClientOptions().AddBroker(d.URL).SetClientID("countersign-" + rand.Text()).
		SetUsername(d.User).SetPassword(string(d.Secret)).SetTLSConfig(d.TLS).
		SetAutoReconnect(false).SetConnectTimeout(kickTime).SetWriteTimeout(kickTime).SetOrderMatters(false)
	d.client, d.answers = mqtt.NewClient(o), answers
	if err := await(ctx, d.client.Connect()); err != nil {
		d.drop()
		return fmt.Errorf("couldn't connect to Mosquitto: %w", err)
	}
	err := await(ctx, d.client.Subscribe(dynsecResponse, 1, func(_ mqtt.Client, m mqtt.Message) {
		if got, ok := parseDynsec(m.Payload()); ok {
			select {
			case answers <- got:
			default: // to another client's commands, while no call waits
			}
		}
	}))
	if err != nil {
		d.drop()
	}
	return err
}

// parseDynsec reads answers; other clients' answers come on the same topic.
func parseDynsec(text []byte) ([]dynsecAnswer, bool) {
	var out struct {
		Responses []dynsecAnswer `json:"responses"`
	}
	if len(text) > maxDynsecAnswer || json.Unmarshal(text, &out) != nil {
		return nil, false
	}
	return out.Responses, true
}

func await(ctx context.Context, token mqtt.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *dynsec) drop() {
	if d.client != nil {
		d.client.Disconnect(dynsecQuiesce)
		d.client = nil
	}
}

func (d *dynsec) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop()
}
