package sdk_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"

	"github.com/countersign-iot/countersign/sdk"
)

// The examples have no output: they are compiled, so that the pages which print them
// cannot fall behind.

func Example_connect() {
	connect := func(ctx context.Context, server, token string, roots *x509.CertPool) error {
		id, err := sdk.Enroll(ctx, sdk.Enrollment{Server: server, Roots: roots, Device: "pump-1", Token: token})
		if err != nil {
			return err
		}
		conn, err := tls.Dial("tcp", "localhost:8883", id.TLSConfig()) // or any MQTT client that takes a *tls.Config
		if err != nil {
			return err
		}
		return conn.Close()
	}
	_ = connect
}

func Example_peers() {
	meet := func(pump, other *sdk.Identity) (net.Listener, error) {
		// On the device that listens:
		ln, err := tls.Listen("tcp", ":7000", pump.PeerConfig(sdk.Peers{}))
		if err != nil {
			return nil, err
		}
		// On the device that calls:
		conn, err := tls.Dial("tcp", "pump-2.local:7000", other.PeerConfig(sdk.Peers{}))
		if err != nil {
			return ln, err
		}
		peer, err := sdk.PeerOf(conn.ConnectionState()) // who it is: id, fleet, certificate
		_ = peer
		return ln, err
	}
	_ = meet
}

func Example_introduction() {
	introduce := func(ctx context.Context, tablet, valve *sdk.Identity, conn *tls.Conn, signed string) error {
		made, err := tablet.Introduce(ctx, "valve-7", "modbus", 5*time.Minute)
		if err != nil {
			return err
		}
		_ = made
		cfg := valve.PeerConfig(sdk.Peers{Allow: func(sdk.Peer) error { return nil }})
		_ = cfg
		in, err := valve.Introduced(signed, time.Now())
		if err == nil {
			err = sdk.CheckPeer(in, valve.Device(), conn.ConnectionState())
		}
		if err != nil || in.Purpose != "modbus" {
			return conn.Close()
		}
		return nil
	}
	_ = introduce
}
