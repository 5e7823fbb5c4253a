package server

import (
	"encoding/json"
	"net"
	"path/filepath"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/mqtt"
)

// Endpoints returns where the server is reached.
func (s *Server) Endpoints() api.Endpoints {
	url := func(scheme string, l net.Listener) string { return urlOf(scheme, l, s.cfg.Names[0]) }
	e := api.Endpoints{Roots: s.cfg.Path(rootsName), Socket: s.cfg.Socket()}
	scheme := "https"
	if s.cfg.Listeners.PlainAPI() {
		scheme = "http"
	}
	e.Enroll = url("https", s.listeners.enroll)
	e.Recovery = url("https", s.listeners.recovery)
	e.MQTT = url("mqtts", s.listeners.mqtt)
	if u := url("wss", s.listeners.websocket); u != "" {
		e.WebSocket = u + mqtt.WebSocketPath
	}
	e.API = url(scheme, s.listeners.api)
	hook := "https"
	if s.cfg.Listeners.PlainHook() {
		hook = "http"
	}
	e.Hook = url(hook, s.listeners.hook)
	for i, l := range s.listeners.tunnels {
		if e.Tunnels == nil {
			e.Tunnels = map[string]string{}
		}
		e.Tunnels[s.cfg.Tunnels[i].Name] = url("tls", l)
	}
	e.Status = url("http", s.listeners.status)
	return e
}

// urlOf names a listener: by its own address where that is one, else by name.
func urlOf(scheme string, l net.Listener, name string) string {
	if l == nil {
		return ""
	}
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = name
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

func (s *Server) statusURL() string {
	if s.cfg.StatusURL != "" || s.listeners == nil {
		return s.cfg.StatusURL
	}
	return urlOf("http", s.listeners.status, s.cfg.Names[0])
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
