package server_test

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	paho5 "github.com/eclipse/paho.golang/paho"
	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// patience is for a machine that has other things to do.
const patience = 30 * time.Second

// knock connects as pump-1 says it is, over TLS without a client certificate, MQTT 3.1.1.
func knock(s *countersigntest.Server, user string, password []byte) (paho.Client, chan struct{}, error) {
	lost := make(chan struct{})
	c := paho.NewClient(paho.NewClientOptions().AddBroker("ssl://" + strings.TrimPrefix(s.Endpoints().MQTT, "mqtts://")).
		SetClientID("pump-1").SetUsername(user).SetPassword(string(password)).SetProtocolVersion(4).
		SetTLSConfig(&tls.Config{RootCAs: s.Roots}).SetAutoReconnect(false).SetConnectTimeout(patience).
		SetConnectionLostHandler(func(paho.Client, error) { close(lost) }))
	k := c.Connect()
	k.WaitTimeout(patience)
	return c, lost, k.Error()
}

func published(t *testing.T, c paho.Client, topic string) {
	t.Helper()
	if k := c.Publish(topic, 1, false, "21"); !k.WaitTimeout(patience) || k.Error() != nil {
		t.Errorf("publish to %s: %v", topic, k.Error())
	}
}

func isOver(t *testing.T, what string, lost chan struct{}) {
	t.Helper()
	select {
	case <-lost:
	case <-time.After(patience):
		t.Errorf("%s: the session goes on", what)
	}
}

// TestDevicesConnectWithSecrets gives devices a secret as text, as octets and one of
// their own, and takes them away.
func TestDevicesConnectWithSecrets(t *testing.T) {
	countersigntest.Each(t, devicesConnectWithSecrets)
}

func devicesConnectWithSecrets(t *testing.T, asked, other *countersigntest.Server) {
	t.Helper()
	if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{AccessKinds: &[]string{"certificate", "secret", "password"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	text, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{})
	if err != nil {
		t.Fatal(err)
	}
	octets, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{Slot: "secondary", Binary: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		secret []byte
		made   *api.IssuedSecret
	}{{[]byte(text.Text), text}, {octets.Octets, octets}} {
		c, lost, err := knock(other, "pump-1", tt.secret)
		if err != nil {
			t.Fatalf("connect with a %d octet secret: %v", len(tt.secret), err)
		}
		published(t, c, "devices/pump-1/up/t")
		if live := other.Sessions(); len(live) != 1 || live[0].Credential != "secret:"+tt.made.ID || live[0].Device != "pump-1" {
			t.Errorf("sessions: got %+v", live)
		}
		stopped, err := asked.Admin.StopSecret(t.Context(), "pump-1", tt.made.ID, api.Act{Note: "found in a bin"})
		if err != nil || stopped.Sessions != here(asked, other) {
			t.Errorf("stop: got %+v, %v", stopped, err)
		}
		isOver(t, "stopped", lost)
		if _, _, err := knock(other, "pump-1", tt.secret); err == nil || !strings.Contains(err.Error(), "user name") {
			t.Errorf("after the stop: got %v, want the refusal of a bad user name or password", err)
		}
	}
	list, err := collect(asked.Admin.Secrets(t.Context(), "pump-1"))
	if err != nil || len(list) != 2 || list[0].State != "stopped" || list[1].Reason != "found in a bin" {
		t.Errorf("secrets: got %+v, %v", list, err)
	}

	// A chosen password with every octet that there is.
	own := make([]byte, 65535) // all that MQTT can carry
	for i := range own {
		own[i] = byte(255 - i%256)
	}
	if _, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{Secret: own}); err != nil {
		t.Fatal(err)
	}
	c, _, err := knock(other, "pump-1", own)
	if err != nil {
		t.Fatalf("connect with every octet: %v", err)
	}
	c.Disconnect(100)
	if _, _, err := knock(other, "pump-1", own[:65534]); err == nil {
		t.Error("connected with an octet less")
	}
}

func collect(seq func(func(api.Secret, error) bool)) (list []api.Secret, err error) {
	for s, err := range seq {
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

func TestDeviceChangesItsSecretOverREST(t *testing.T) {
	countersigntest.Each(t, deviceChangesItsSecretOverREST)
}

func deviceChangesItsSecretOverREST(t *testing.T, asked, other *countersigntest.Server) {
	t.Helper()
	if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{AccessKinds: &[]string{"certificate", "secret"}}); err != nil {
		t.Fatal(err)
	}
	id := asked.Enroll(t, "pump-1")
	first, err := id.ChangeSecret(t.Context(), false) // with its certificate
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Admin.RotateSecret(t.Context(), "pump-1", api.RotateSecret{NewSecret: api.NewSecret{Slot: "secondary"}}); err != nil {
		t.Fatal(err)
	}
	l := &sdk.Login{Server: other.Endpoints().Enroll, Roots: other.Roots, Device: "pump-1", Secret: []byte("csds_wrong")}
	if _, err := l.ChangeSecret(t.Context(), false); err == nil || !strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong secret: got %v", err)
	}
	l.Secret = []byte(first.Text)
	if _, err := l.ChangeSecret(t.Context(), true); err == nil || !strings.Contains(err.Error(), "less than") {
		t.Errorf("twice within a minute: got %v", err)
	}
	c, _, err := knock(other, "pump-1", l.Secret)
	if err != nil {
		t.Fatal(err)
	}
	c.Disconnect(100)
}

// guestPolicy is the built-in one, with a statement for guests.
const guestPolicy = `
statements:
  - {id: come-in, effect: allow, for: [devices, guests], actions: [connect]}
  - {id: report, effect: allow, actions: [publish], topics: ["devices/${device.id}/up/#"]}
  - {id: look, effect: allow, for: [guests], actions: [subscribe, receive], topics: ["public/#"]}
tests:
  - {name: a guest looks, as: {guest: x}, allow: [connect, subscribe public/news], deny: [publish public/news]}
`

func apply(t *testing.T, s *countersigntest.Server, source string) {
	t.Helper()
	if _, err := s.Admin.ApplyPolicy(t.Context(), "default", api.ApplyPolicy{PolicySource: api.PolicySource{Source: source}}); err != nil {
		t.Fatalf("apply the policy: %v", err)
	}
}

// guestsCome waits until the policy that lets guests in is in force at a node.
func guestsCome(t *testing.T, s *countersigntest.Server) {
	t.Helper()
	kit.Eventually(t, "guests are let in", func() bool {
		c, _, err := knock(s, "default", nil)
		if err == nil {
			c.Disconnect(0)
		}
		return err == nil
	})
}

// TestGuestsDisturbNobody lets a guest in that calls itself like a device.
func TestGuestsDisturbNobody(t *testing.T) {
	countersigntest.Each(t, guestsDisturbNobody)
}

func guestsDisturbNobody(t *testing.T, asked, other *countersigntest.Server) {
	t.Helper()
	yes := true
	if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{AccessKinds: &[]string{"secret"}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := knock(other, "", nil); err == nil {
		t.Fatal("a guest came in although guests are off")
	}
	if _, err := asked.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	made, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{Guests: &yes}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := knock(other, "", nil); err == nil {
		t.Error("a guest came in under the built-in policy, which grants guests nothing")
	}
	apply(t, asked, guestPolicy) // which may end sessions: they have the old one's permissions
	guestsCome(t, other)
	device, lost, err := knock(other, "pump-1", []byte(made.Text))
	if err != nil {
		t.Fatal(err)
	}
	defer device.Disconnect(100)
	guest, _, err := knock(other, "default", nil) // under the device's client id
	if err != nil {
		t.Fatalf("guest: %v", err)
	}
	defer guest.Disconnect(100)
	for filter, want := range map[string]bool{"public/#": true, "devices/pump-1/up/#": false, "devices/pump-1/down/#": false, "#": false} {
		k := guest.Subscribe(filter, 1, func(paho.Client, paho.Message) {})
		k.WaitTimeout(patience)
		if granted := k.(*paho.SubscribeToken).Result()[filter] != 0x80; granted != want {
			t.Errorf("guest subscribes to %s: granted %v, want %v", filter, granted, want)
		}
	}
	if live := other.Sessions(); !slices.ContainsFunc(live, func(x countersign.Session) bool {
		return strings.HasPrefix(x.Device, "guest/") && x.Credential == "guest" && !x.NotAfter.IsZero()
	}) {
		t.Errorf("sessions: got %+v, want a guest's", live)
	}
	published(t, device, "devices/pump-1/up/t")
	select {
	case <-lost:
		t.Error("a guest of the same client id ended the device's session")
	default:
	}
	if live := other.Sessions(); !slices.ContainsFunc(live, func(x countersign.Session) bool { return x.Device == "pump-1" }) {
		t.Errorf("sessions: got %+v", live)
	}
}

// steps speaks SCRAM in the AUTH packets of paho.
type steps struct{ scram *sdk.SCRAM }

func (s steps) Authenticate(a *paho5.Auth) *paho5.Auth {
	answer, err := s.scram.Answer(a.Properties.AuthData)
	if err != nil {
		return nil
	}
	return &paho5.Auth{ReasonCode: 0x18, Properties: &paho5.AuthProperties{AuthMethod: sdk.SCRAMMethod, AuthData: answer}}
}

func (steps) Authenticated() {}

// TestDevicesConnectWithSCRAM lets a device in that does not send its secret, where
// one that sends it is refused.
func TestDevicesConnectWithSCRAM(t *testing.T) {
	countersigntest.Each(t, devicesConnectWithSCRAM)
}

func devicesConnectWithSCRAM(t *testing.T, asked, other *countersigntest.Server) {
	t.Helper()
	if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{AccessKinds: &[]string{"scram"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	made, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{})
	if err != nil {
		t.Fatal(err)
	}
	connect := func(secret string) (*sdk.SCRAM, *paho5.Connack, error) {
		t.Helper()
		conn, err := tls.Dial("tcp", other.Broker(t), &tls.Config{RootCAs: other.Roots, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.NetConn().Close() })
		x := &sdk.SCRAM{Device: "pump-1", Secret: secret}
		c := paho5.NewClient(paho5.ClientConfig{Conn: packets.NewThreadSafeConn(conn), AuthHandler: steps{x}, PacketTimeout: patience})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		ack, err := c.Connect(ctx, &paho5.Connect{
			ClientID: "pump-1", CleanStart: true, KeepAlive: 60,
			Properties: &paho5.ConnectProperties{AuthMethod: sdk.SCRAMMethod, AuthData: x.First()},
		})
		return x, ack, err
	}
	x, ack, err := connect(made.Text)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	if err := x.Check(ack.Properties.AuthData); err != nil {
		t.Error(err)
	}
	if live := other.Sessions(); len(live) != 1 || live[0].Device != "pump-1" || live[0].Credential != "secret:"+made.ID {
		t.Errorf("sessions: got %+v", live)
	}
	if _, ack, err := connect("csds_wrong"); err == nil || ack == nil || ack.ReasonCode != 0x86 {
		t.Errorf("with a wrong secret: got %+v, %v, want a bad user name or password", ack, err)
	}
	if _, _, err := knock(other, "pump-1", []byte(made.Text)); err == nil {
		t.Error("a secret that was sent opens a fleet that takes scram alone")
	}
}

// TestFleetThatAcceptsLessCutsSessions turns guests and secrets off under a guest and
// a device that came in by a secret, and leaves a device with a certificate alone.
func TestFleetThatAcceptsLessCutsSessions(t *testing.T) {
	countersigntest.Each(t, fleetThatAcceptsLessCutsSessions)
}

func fleetThatAcceptsLessCutsSessions(t *testing.T, asked, other *countersigntest.Server) {
	t.Helper()
	yes, no := true, false
	put := func(f api.PutFleet) {
		t.Helper()
		if _, err := asked.Admin.PutFleet(t.Context(), "default", f); err != nil {
			t.Fatal(err)
		}
	}
	put(api.PutFleet{AccessKinds: &[]string{"certificate", "secret"}, Guests: &yes})
	apply(t, asked, guestPolicy)
	guestsCome(t, other)
	if _, err := asked.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	made, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{})
	if err != nil {
		t.Fatal(err)
	}
	conn, code := connect(t, other, asked.Enroll(t, "pump-2"))
	if code != 0 {
		t.Fatalf("with a certificate: CONNACK %d", code)
	}
	device, lost, err := knock(other, "pump-1", []byte(made.Text))
	if err != nil {
		t.Fatal(err)
	}
	defer device.Disconnect(100)
	guest, gone, err := knock(other, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Disconnect(100)
	put(api.PutFleet{Guests: &no})
	isOver(t, "guests turned off", gone)
	published(t, device, "devices/pump-1/up/t") // what is still accepted goes on
	put(api.PutFleet{AccessKinds: &[]string{"certificate"}})
	isOver(t, "secrets turned off", lost)
	for end := time.Now().Add(patience); len(other.Sessions()) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("sessions: got %+v, want one", other.Sessions())
		}
	}
	subscribe(t, conn, "public/x") // the device with the certificate is still here
}
