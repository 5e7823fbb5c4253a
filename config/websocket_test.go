package config

import (
	"strings"
	"testing"
)

func TestOriginsAreChecked(t *testing.T) {
	for origin, good := range map[string]bool{
		"https://app.example.com": true, "http://localhost:3000": true, "app.example.com": true, "*.example.com": true, "*": true,
		"": false, "https://": false, "https://app.example.com/": false, "ftp://app.example.com": false, "a b": false, "[a": false,
	} {
		c := Config{Listeners: Listeners{WebSocket: ":8084"}, WebSocket: WebSocket{Origins: []string{origin}}}
		bad := false
		for _, p := range c.Check() {
			bad = bad || strings.HasPrefix(p.Field, "websocket.origins[0]")
		}
		if bad == good {
			t.Errorf("%q: refused %v, want %v", origin, bad, !good)
		}
	}
	many := Config{WebSocket: WebSocket{Origins: make([]string, maxOrigins+1)}}
	if p := many.Check(); len(p) != 1 || p[0].Field != "websocket.origins" {
		t.Errorf("too many origins: got %v", p)
	}
}

func TestTheWebSocketListenerIsOffUnlessDeveloping(t *testing.T) {
	c, err := Parse([]byte("listeners: {websocket: ':8084'}\nwebsocket: {origins: ['https://app.example.com']}\n"))
	if err != nil || c.Listeners.WebSocket != ":8084" || len(c.WebSocket.Origins) != 1 {
		t.Errorf("Parse: got %+v %v", c, err)
	}
	if got := (Config{}).WithDefaults().Listeners.WebSocket; got != Off {
		t.Errorf("default: got %q", got)
	}
	if got := Dev("d", false).Listeners.WebSocket; got != "127.0.0.1:8084" {
		t.Errorf("dev: got %q", got)
	}
}
