package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/config"
)

func TestChannelsAreChecked(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	for path, text := range map[string]string{key: "sixteen octets, and more", filepath.Join(dir, "short"): "short", filepath.Join(dir, "url"): "https://hooks.example.net/T0/secret"} {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const (
		hook   = "{name: a, kind: webhook, url: 'https://hooks.example.net/x', secret: 'file:KEY'}"
		letter = "{name: a, kind: mail, addr: 'mail.example.net:587', from: a@example.net, to: [b@example.net]}"
		line   = "{name: a, kind: syslog, addr: 'siem.example.net:6514'}"
	)
	for _, tt := range []struct{ name, text, field string }{
		{"webhook", hook, ""},
		{"webhook by reference", strings.Replace(hook, "'https://hooks.example.net/x'", "'file:DIR/url'", 1), ""},
		{"webhook on loopback", strings.Replace(hook, "https://hooks.example.net", "http://127.0.0.1:9", 1), ""},
		{"mail", letter, ""},
		{"syslog", line, ""},
		{"webhook in the clear", strings.Replace(hook, "https:", "http:", 1), "notify[0].url"},
		{"webhook with a password", strings.Replace(hook, "https://", "https://u:p@", 1), "notify[0].url"},
		{"webhook to a file", strings.Replace(hook, "https://hooks.example.net/x", "file:///etc/passwd", 1), "notify[0].url"},
		{"short secret", strings.Replace(hook, "KEY", "DIR/short", 1), "notify[0].secret"},
		{"no secret", strings.Replace(hook, ", secret: 'file:KEY'", "", 1), "notify[0].secret"},
		{"two of one name", hook + "\n  - " + hook, "notify[1].name"},
		{"name", strings.Replace(hook, "name: a", "name: 'A b'", 1), "notify[0].name"},
		{"kind", strings.Replace(line, "syslog", "pigeon", 1), "notify[0].kind"},
		{"severity", strings.Replace(line, "name: a", "name: a, severity: loud", 1), "notify[0].severity"},
		{"mail in the clear", strings.Replace(letter, "name: a", "name: a, tls: off", 1), "notify[0].tls"},
		{"syslog by STARTTLS", strings.Replace(line, "name: a", "name: a, tls: starttls", 1), "notify[0].tls"},
		{"header in an address", strings.Replace(letter, "a@example.net", `"a@example.net\r\nBcc: c@example.net"`, 1), "notify[0].from"},
		{"named recipient", strings.Replace(letter, "b@example.net", `"Bo <b@example.net>"`, 1), "notify[0].to"},
		{"no recipient", strings.Replace(letter, "to: [b@example.net]", "to: []", 1), "notify[0].to"},
		{"user without password", strings.Replace(letter, "name: a", "name: a, username: u", 1), "notify[0].username"},
		{"certificate without key", strings.Replace(line, "name: a", "name: a, certificate: KEY", 1), "notify[0].key"},
		{"no such roots", strings.Replace(line, "name: a", "name: a, roots: /nowhere", 1), "notify[0].roots"},
		{"no port", strings.Replace(line, ":6514", "", 1), "notify[0].addr"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.NewReplacer("KEY", key, "DIR", dir).Replace("notify:\n  - " + tt.text + "\n")
			c, err := config.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			var fields []string
			for _, p := range c.Check() {
				if fields = append(fields, p.Field); strings.Contains(p.Message, "/T0/secret") {
					t.Errorf("the message shows what is secret: %s", p.Message)
				}
			}
			if got := strings.Join(fields, " "); got != tt.field {
				t.Errorf("problems: got %q, want %q", got, tt.field)
			}
		})
	}
}

func TestChannelDefaults(t *testing.T) {
	given := config.Config{Notify: []config.Channel{{Kind: config.ChannelMail}, {Kind: config.ChannelSyslog}, {Kind: config.ChannelWebhook}}}
	c := given.WithDefaults()
	if c.Notify[0].TLS != config.TLSStart || c.Notify[1].TLS != config.TLSOn || c.Notify[2].TLS != "" {
		t.Errorf("tls: got %q %q %q", c.Notify[0].TLS, c.Notify[1].TLS, c.Notify[2].TLS)
	}
	if given.Notify[0].TLS != "" {
		t.Error("the defaults were written into what was given")
	}
}
