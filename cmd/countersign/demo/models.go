package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/simulate/device"
)

const (
	// modelsFleet is where the devices of --models live.
	modelsFleet = "models"
	// hookName is the name of the broker that asks.
	hookName = "broker"
	// guessFrom is the address of the client that guesses: on loopback, and of no other client.
	guessFrom = "127.0.0.66"
	// maxGuesses is more than the ledger suffers from one address.
	maxGuesses = 20
)

// modelSteps are the steps of --models: docs/authentication explains each.
func (d *demo) modelSteps() []step {
	return []step{
		{"one-way: a secret inside of TLS", d.oneWay},
		{"two-way: mutual TLS", d.twoWay},
		{"three-way: introduced by the authority", d.threeWay},
		{"distributed: device to device, status stapled", d.distributed},
		{"centralized: a broker asks", d.centralized},
		{"guess secrets from another address", d.guess},
	}
}

// modelsConfig opens the door for brokers that ask.
func modelsConfig(c *config.Config) error {
	secret := filepath.Join(c.Dir, "hook.secret")
	if err := os.WriteFile(secret, []byte(rand.Text()), 0o600); err != nil {
		return fmt.Errorf("write the broker's secret: %w", err)
	}
	c.Listeners.Hook = "127.0.0.1:0"
	c.Hooks = []config.Hook{{Name: hookName, Kind: "generic", Secret: config.Secret("file:" + secret)}}
	return nil
}

// login connects without a certificate, from an address of this machine.
func (d *demo) login(ctx context.Context, from, user, password string) error {
	s, err := d.broker.Open(ctx, device.Login{From: from, ClientID: user, Username: user, Password: []byte(password)})
	if err != nil {
		return err
	}
	defer s.Leave()
	return s.Publish(ctx, "devices/"+user+"/up/hello", "from "+user)
}

func (d *demo) oneWay(ctx context.Context) (string, error) {
	kinds := []string{"certificate", "secret"}
	if _, err := d.admin.PutFleet(ctx, modelsFleet, api.PutFleet{AccessKinds: &kinds}); err != nil {
		return "", err
	}
	if _, err := d.admin.CreateDevice(ctx, api.NewDevice{ID: "meter-1", Fleet: modelsFleet}); err != nil {
		return "", err
	}
	secret, err := d.admin.CreateSecret(ctx, "meter-1", api.NewSecret{})
	if err != nil {
		return "", err
	}
	d.secret = secret.Text
	if err := d.login(ctx, "127.0.0.1", "meter-1", d.secret); err != nil {
		return "", err
	}
	return "meter-1 connected with a secret of 256 bits, and without a certificate", nil
}

func (d *demo) twoWay(ctx context.Context) (string, error) {
	for _, device := range []string{"pump-1", "pump-2"} {
		e := d.enrollment(device)
		e.Fleet = modelsFleet
		id, err := d.byToken(ctx, &e)
		if err != nil {
			return "", err
		}
		if err := d.admitted(ctx, id); err != nil {
			return "", err
		}
		d.pair = append(d.pair, id)
	}
	return "pump-1 and pump-2 connected with their certificates", nil
}

// meet has two devices connect to each other directly. The one that calls says text
// first; the other one judges it.
func meet(ctx context.Context, caller, listener *tls.Config, text string, judge func(tls.ConnectionState, string) error) error {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", listener)
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	judged := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			judged <- err
			return
		}
		defer func() { _ = conn.Close() }()
		said, err := io.ReadAll(conn)
		if err == nil {
			err = judge(conn.(*tls.Conn).ConnectionState(), string(said)) //nolint:forcetypeassert // of tls.Listen
		}
		judged <- err
	}()
	conn, err := (&tls.Dialer{Config: caller}).DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	_, err = io.WriteString(conn, text)
	return errors.Join(err, conn.Close(), <-judged)
}

func (d *demo) threeWay(ctx context.Context) (string, error) {
	if len(d.pair) < 2 {
		return "", errors.New("there are no two devices to introduce")
	}
	made, err := d.pair[0].Introduce(ctx, "pump-2", "modbus", time.Minute)
	if err != nil {
		return "", err
	}
	anyone := sdk.Peers{Allow: func(sdk.Peer) error { return nil }}
	err = meet(ctx, d.pair[0].PeerConfig(anyone), d.pair[1].PeerConfig(anyone), made.Signed, func(cs tls.ConnectionState, said string) error {
		in, err := d.pair[1].Introduced(said, d.now())
		if err != nil {
			return err
		}
		return sdk.CheckPeer(in, "pump-2", cs)
	})
	return "pump-2 checked offline that the authority introduces pump-1 to it, for modbus", err
}

func (d *demo) distributed(ctx context.Context) (string, error) {
	if len(d.pair) < 2 {
		return "", errors.New("there are no two devices to meet")
	}
	err := meet(ctx, d.pair[0].PeerConfig(sdk.Peers{}), d.pair[1].PeerConfig(sdk.Peers{}), "hello", func(cs tls.ConnectionState, _ string) error {
		peer, err := sdk.PeerOf(cs)
		if err == nil && peer.Device != "pump-1" {
			err = fmt.Errorf("it is %s", peer.Device)
		}
		return err
	})
	return "pump-2 knows pump-1 by its certificate and a stapled OCSP answer, and asked no server", err
}

// centralized asks as a broker does that has ended the device's TLS itself.
func (d *demo) centralized(ctx context.Context) (string, error) {
	if len(d.pair) < 2 {
		return "", errors.New("there is no device to ask for")
	}
	var chain strings.Builder
	for _, der := range d.pair[0].Path() {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return "", err
		}
	}
	ask := func() (answer struct {
		Allow  bool   `json:"allow"`
		Device string `json:"device"`
		Reason string `json:"reason"`
	}, err error,
	) {
		body, err := json.Marshal(map[string]any{"client_id": "pump-1", "certificate": chain.String(), "address": "127.0.0.1", "port": 1, "protocol": "MQTT 5"})
		if err != nil {
			return answer, err
		}
		secret, err := d.hookSecret.Resolve()
		if err != nil {
			return answer, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.server.Endpoints().Hook+"/hooks/"+hookName+"/connect", bytes.NewReader(body))
		if err != nil {
			return answer, err
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		req.Header.Set("Content-Type", "application/json")
		res, err := (&http.Client{Timeout: stepTime}).Do(req)
		if err != nil {
			return answer, err
		}
		defer func() { _ = res.Body.Close() }()
		return answer, json.NewDecoder(res.Body).Decode(&answer)
	}
	before, err := ask()
	if err != nil {
		return "", err
	}
	if _, err := d.admin.Suspend(ctx, "pump-1", api.Act{Note: "demo"}); err != nil {
		return "", err
	}
	after, err := ask()
	if err != nil {
		return "", err
	}
	if !before.Allow || before.Device != "pump-1" || after.Allow {
		return "", fmt.Errorf("the broker was answered %+v, then %+v", before, after)
	}
	return "the broker was answered yes, and once pump-1 was suspended no: " + after.Reason, nil
}

// guess tries secrets in meter-1's name until its address is blocked, and then
// looks whether meter-1 is any the worse for it.
func (d *demo) guess(ctx context.Context) (string, error) {
	for n := 1; n <= maxGuesses; n++ {
		err := d.login(ctx, guessFrom, "meter-1", fmt.Sprintf("guess-%d", n))
		r, refused := errors.AsType[*device.Refusal](err)
		switch {
		case err == nil:
			return "", errors.New("a guess was taken for the secret")
		case refused && r.Code == packets.ConnackConnectionRateExceeded, !refused && n > 1: // turned away before CONNECT
			if err := d.login(ctx, "127.0.0.1", "meter-1", d.secret); err != nil {
				return "", fmt.Errorf("the device itself: %w", err)
			}
			return fmt.Sprintf("%s was blocked after %d wrong secrets; meter-1 connects as before", guessFrom, n-1), nil
		case !refused:
			return "", err
		}
	}
	return "", fmt.Errorf("%d wrong secrets, and the address is not blocked", maxGuesses)
}
