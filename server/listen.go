package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/countersign-iot/countersign/config"
)

const (
	rootsName     = "roots.pem"
	endpointsName = "endpoints.json"
	holdsName     = "holds.json"
	// portsName keeps the ports that were chosen, so that certificates, which carry
	// the status URL, and scripts go on working after a restart.
	portsName = "ports.json"
	// dialTest is how long an old socket has to answer before it counts as dead.
	dialTest = time.Second
)

// listeners are the bound doors; a nil one is off.
type listeners struct {
	enroll, recovery, mqtt, websocket, hook, api, status, socket net.Listener
	tunnels                                                      []net.Listener // in the order of the configuration
}

func (l *listeners) all() []net.Listener {
	return append([]net.Listener{l.enroll, l.recovery, l.mqtt, l.websocket, l.hook, l.api, l.status, l.socket}, l.tunnels...)
}

func (l *listeners) close() error {
	var errs []error
	for _, one := range l.all() {
		if one != nil {
			if err := one.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// bind opens every listener. Where the configuration leaves the port open, the
// one of last time is tried first.
func bind(cfg config.Config) (l *listeners, err error) {
	l = &listeners{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	last := map[string]string{}
	if b, err := os.ReadFile(cfg.Path(portsName)); err == nil {
		_ = json.Unmarshal(b, &last) // a damaged file costs the old ports, no more
	}
	now := map[string]string{}
	for _, d := range []struct {
		name, addr string
		into       *net.Listener
	}{
		{"enroll", cfg.Listeners.Enroll, &l.enroll},
		{"recovery", cfg.Listeners.Recovery, &l.recovery},
		{"mqtt", cfg.Listeners.MQTT, &l.mqtt},
		{"websocket", cfg.Listeners.WebSocket, &l.websocket},
		{"hook", cfg.Listeners.Hook, &l.hook},
		{"api", cfg.Listeners.API, &l.api},
		{"status", cfg.Listeners.Status, &l.status},
	} {
		if d.addr == config.Off {
			continue
		}
		if *d.into, err = listenTCP(d.addr, last[d.name]); err != nil {
			return l, fmt.Errorf("open the %s listener: %w", d.name, err)
		}
		now[d.name] = portOf(*d.into)
	}
	for _, t := range cfg.Tunnels {
		name := "tunnel " + t.Name
		one, err := listenTCP(t.Listen, last[name])
		if err != nil {
			return l, fmt.Errorf("open the %s: %w", name, err)
		}
		l.tunnels, now[name] = append(l.tunnels, one), portOf(one)
	}
	if l.socket, err = listenSocket(cfg.Socket()); err != nil {
		return l, fmt.Errorf("open the socket %s: %w", cfg.Socket(), err)
	}
	b, err := json.Marshal(now)
	if err != nil {
		return l, err
	}
	err = writeChanged(cfg.Path(portsName), b, 0o644)
	if errors.Is(err, syscall.ENOSPC) { // it costs the same ports after the next start, no more
		err = nil
	}
	return l, err
}

func listenTCP(addr, lastPort string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if port == "0" && lastPort != "" {
		if l, err := net.Listen("tcp", net.JoinHostPort(host, lastPort)); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", addr)
}

func portOf(l net.Listener) string {
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return ""
	}
	return port
}

// socketMode lets root and the server's group in.
const socketMode = 0o660

// listenSocket opens the operators' socket, for its owner alone at first and with
// socketMode when it is returned. A socket that no process answers on is left from a
// killed process.
func listenSocket(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, dialTest); err == nil {
		return nil, errors.Join(errors.New("another server answers on it"), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Not by the umask, which all goroutines share: a folder that another one makes
	// meanwhile could not be entered.
	lc := net.ListenConfig{Control: ownerOnly}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
