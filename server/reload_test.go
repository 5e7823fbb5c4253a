package server_test

import (
	"context"
	"crypto/tls"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
)

func TestReloadAppliesWhatItCanAndNamesTheRest(t *testing.T) {
	cfg := production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	ctx, cancel := context.WithCancel(context.Background())
	s, err := server.New(ctx, cfg, server.Options{})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	before := served(t, s.Endpoints().Enroll)
	admin := sdk.Local(s.Endpoints().Socket)
	reserved := func(when, id string) {
		t.Helper()
		for door, create := range map[string]func() error{
			"device": func() error { _, err := admin.CreateDevice(ctx, api.NewDevice{ID: id}); return err },
			"token":  func() error { _, err := admin.CreateToken(ctx, api.NewToken{Device: id}); return err },
			"key":    func() error { _, err := admin.CreateKey(ctx, api.NewKey{Device: id}); return err },
		} {
			if err := create(); countersign.CodeOf(err) != countersign.BadRequest {
				t.Errorf("%s: %s %s: got %v, want a name of the server refused", when, door, id, err)
			}
		}
	}
	reserved("at the start", "127.0.0.1")
	reserved("at the start", "LocalHost.")

	cfg.Names = []string{"127.0.0.1", "new.example.net"}
	cfg.Limits.MaxConnections = 7
	write(t, cfg.Path("weak"), strings.Repeat("0f", 10)+"\n")
	cfg.WeakKeys = []string{cfg.Path("weak")}
	applied, restart, err := s.Reload(ctx, cfg)
	if err != nil || !slices.Contains(applied, "weak_keys") || !slices.Equal(restart, []string{"limits"}) {
		t.Errorf("Reload: got %v, %v, %v, want weak_keys applied and limits named", applied, restart, err)
	}
	after := served(t, s.Endpoints().Enroll)
	if slices.Equal(before, after) || !slices.Contains(after, "new.example.net") {
		t.Errorf("names of the certificate: got %v, want the new one in it", after)
	}
	reserved("after the reload", "New.Example.Net")
	bad := cfg
	bad.Names = []string{"not a name"}
	if _, _, err := s.Reload(ctx, bad); err == nil {
		t.Error("Reload of a broken configuration: got no error")
	}
	if now := served(t, s.Endpoints().Enroll); !slices.Equal(now, after) {
		t.Errorf("names after a refused reload: got %v, want %v", now, after)
	}
}

// served returns the names in the certificate of a listener.
func served(t *testing.T, at string) []string {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].DNSNames
}
