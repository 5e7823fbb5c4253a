package command

import (
	"context"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/server"
)

// listening prints a line for each listener that accepts.
func listening(env *Env, e api.Endpoints) {
	p := env.stdout()
	for _, l := range []struct{ name, url string }{
		{"enroll", e.Enroll},
		{"recovery", e.Recovery},
		{"mqtt", e.MQTT},
		{"websocket", e.WebSocket},
		{"hook", e.Hook},
		{"api", e.API},
		{"status", e.Status},
		{"socket", e.Socket},
	} {
		if l.url != "" {
			p.linef("listening: %-10s %s", l.name, l.url)
		}
	}
	var names []string
	for name := range e.Tunnels {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		p.linef("listening: %-10s %s", "tunnel", name+" "+e.Tunnels[name])
	}
}

// notify reports the state of the service to systemd, where it asked for that (sd_notify(3)).
func notify(env *Env, state string) {
	path := env.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") { // the abstract namespace
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // systemd sees the service by its process all the same
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}

// hangup is what SIGHUP works on.
type hangup struct {
	signals <-chan os.Signal
	again   func() (config.Config, error)
	level   *slog.LevelVar
	log     *slog.Logger
}

// onHangup reads the configuration again at each SIGHUP, until ctx ends.
func onHangup(ctx context.Context, s *server.Server, h hangup) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.signals:
			reload(ctx, s, h)
		}
	}
}

func reload(ctx context.Context, s *server.Server, h hangup) {
	cfg, err := h.again()
	var applied, restart []string
	if err == nil {
		applied, restart, err = s.Reload(ctx, cfg)
	}
	if err != nil {
		h.log.ErrorContext(ctx, "configuration not reloaded", "applied", applied, "error", err)
		return
	}
	if err := h.level.UnmarshalText([]byte(cfg.Log.Level)); err == nil {
		applied = append(applied, "log.level")
	}
	if len(restart) > 0 {
		h.log.WarnContext(ctx, "configuration reloaded; some settings need a restart", "applied", applied, "needs_restart", restart)
		return
	}
	h.log.WarnContext(ctx, "configuration reloaded", "applied", applied) // shown at every level that is in use
}
