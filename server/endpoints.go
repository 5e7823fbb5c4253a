package server

import (
	"encoding/json"
	"net"
	"path/filepath"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/mqtt"
)

// Endpoints tells where the server is reached.
func (s *Server) Endpoints() api.Endpoints {
	e := api.Endpoints{Roots: s.cfg.Path(rootsName), Socket: s.cfg.Socket()}
	scheme := "https"
	if s.cfg.Listeners.PlainAPI() {
		scheme = "http"
	}
	e.Enroll = s.url("https", s.listeners.enroll)
	e.Recovery = s.url("https", s.listeners.recovery)
	e.MQTT = s.url("mqtts", s.listeners.mqtt)
	if u := s.url("wss", s.listeners.websocket); u != "" {
		e.WebSocket = u + mqtt.WebSocketPath
	}
	e.API = s.url(scheme, s.listeners.api)
	hook := "https"
	if s.cfg.Listeners.PlainHook() {
		hook = "http"
	}
	e.Hook = s.url(hook, s.listeners.hook)
	for i, l := range s.listeners.tunnels {
		if e.Tunnels == nil {
			e.Tunnels = map[string]string{}
		}
		e.Tunnels[s.cfg.Tunnels[i].Name] = s.url("tls", l)
	}
	e.Status = s.url("http", s.listeners.status)
	return e
}

// url names a listener: by its own address where that is one, else by the first
// of the server's names.
func (s *Server) url(scheme string, l net.Listener) string {
	if l == nil {
		return ""
	}
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = s.cfg.Names[0]
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

func (s *Server) statusURL() string {
	if s.cfg.StatusURL != "" || s.listeners == nil {
		return s.cfg.StatusURL
	}
	return s.url("http", s.listeners.status)
}

func (s *Server) writeEndpoints() error {
	e := s.Endpoints()
	for _, path := range []*string{&e.Roots, &e.Socket} { // the reader may be in another folder
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(s.cfg.Path(endpointsName), append(b, '\n'), 0o644)
}
