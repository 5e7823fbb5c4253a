package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/config"
)

func TestCheckFindsUnsafeHooks(t *testing.T) {
	dir := t.TempDir()
	secret := func(name, text string) config.Secret {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return config.Secret("file:" + path)
	}
	long, short := secret("long", "0123456789abcdefghij"), secret("short", "0123")
	kick := config.HookKick{URL: "https://broker.example.com", Secret: long}
	for _, c := range []struct {
		name, listener string
		hook           config.Hook
		field, says    string // empty: nothing is wrong
	}{
		{"good", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx", Secret: long, Kick: kick}, "", ""},
		{"network alone", "127.0.0.1:0", config.Hook{Name: "a", Kind: "vernemq", Networks: []string{"192.0.2.1"}}, "", ""},
		{"anybody", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx"}, "hooks[0].secret", "any caller"},
		{"short secret", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx", Secret: short}, "hooks[0].secret", "shorter"},
		{"secret in place of a reference", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx", Secret: "hunter2-hunter2-hunter2"}, "hooks[0].secret", "reference"},
		{"no listener", "", config.Hook{Name: "a", Kind: "emqx", Secret: long}, "listeners.hook", "is off"},
		{"certificate over plain HTTP", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx", Device: "broker-1"}, "hooks[0].device", "plain HTTP"},
		{"certificate over TLS", "192.0.2.1:8085", config.Hook{Name: "a", Kind: "emqx", Device: "broker-1"}, "", ""},
		{"unknown kind", "127.0.0.1:0", config.Hook{Name: "a", Kind: "kafka", Secret: long}, "hooks[0].kind", "not one of"},
		{"bad name", "127.0.0.1:0", config.Hook{Name: "a/b", Kind: "emqx", Secret: long}, "hooks[0].name", ""},
		{"bad network", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx", Networks: []string{"x"}}, "hooks[0].networks[0]", ""},
		{"plain API over the network", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx", Secret: long, Kick: config.HookKick{URL: "http://broker.example.com"}}, "hooks[0].kick.url", "shows the secret"},
		{"a proxy to be kicked", "127.0.0.1:0", config.Hook{Name: "a", Kind: "nginx", Secret: long, Kick: kick}, "hooks[0].kick.url", "no sessions"},
		{"NATS without a seed", "", config.Hook{Name: "a", Kind: "nats", NATS: config.HookNATS{URL: "nats://127.0.0.1:1", Account: "A"}}, "hooks[0].nats.seed", "missing"},
		{"a list for no Mosquitto", "127.0.0.1:0", config.Hook{Name: "a", Kind: "emqx", Secret: long, CRL: config.HookCRL{File: filepath.Join(dir, "crl")}}, "hooks[0].crl", "mosquitto"},
		{"Mosquitto alone", "", config.Hook{Name: "a", Kind: "mosquitto", CRL: config.HookCRL{File: filepath.Join(dir, "crl")}}, "", ""},
	} {
		problems := config.Config{Listeners: config.Listeners{Hook: c.listener}, Hooks: []config.Hook{c.hook}}.Check()
		if c.field == "" {
			if len(problems) > 0 {
				t.Errorf("%s: got %v, want no problem", c.name, problems)
			}
			continue
		}
		i := slices.IndexFunc(problems, func(p config.Problem) bool { return p.Field == c.field })
		if i < 0 || !strings.Contains(problems[i].Message, c.says) {
			t.Errorf("%s: got %v, want one at %s that says %q", c.name, problems, c.field, c.says)
		}
		for _, p := range problems {
			if strings.Contains(p.Message, "hunter2") {
				t.Errorf("%s: shows the secret: %v", c.name, p)
			}
		}
	}
	two := config.Hook{Name: "a", Kind: "emqx", Secret: long}
	if p := (config.Config{Listeners: config.Listeners{Hook: "127.0.0.1:0"}, Hooks: []config.Hook{two, two}}).Check(); len(p) != 1 {
		t.Errorf("two of a name: got %v, want one problem", p)
	}
}
