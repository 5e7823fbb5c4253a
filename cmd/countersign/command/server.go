package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/server"
	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"
)

// configName is the configuration file in the data folder.
const configName = "countersign.yaml"

// devPorts of --ports: the ones of the documentation, or any that are free.
const devPorts = "fixed"

func devCommand(env *Env) *cobra.Command {
	var ports string
	c := &cobra.Command{
		Use: "dev", Short: "Run everything on this machine, for trying out",
		Long: `Run the whole server on loopback with its data in --dir: a root and an issuing
authority, a fleet named default that accepts tokens, and all doors. Ports are
8443 (enroll), 8883 (MQTT), 8080 (API) and 8090 (CRL, OCSP); with --ports 0 free
ones, which a second start on the same folder keeps. endpoints.json in the data
folder tells them, once all of them accept.`,
		Example: `  countersign dev
  countersign dev --dir /tmp/try --ports 0`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ports != devPorts && ports != "0" {
				return usagef("--ports %q is neither %s nor 0", ports, devPorts)
			}
			cfg := config.Dev(env.dataDir(), ports == "0")
			cfg.Log.Level = "warn"
			return startError(env, serve(cmd.Context(), env, cfg, true, func() (config.Config, error) { return cfg, nil }), cfg, "")
		},
	}
	c.Flags().StringVar(&ports, "ports", devPorts, "fixed, or 0 for free ones")
	complete(c, "ports", devPorts, "0")
	return c
}

func serverCommand(env *Env) *cobra.Command {
	var file string
	run := &cobra.Command{
		Use: "run", Short: "Run the server",
		Long: `Run the server on a database that server init founded, with the keys of that
database. What is missing or does not fit is refused with what to do about it;
nothing is ever made anew by a start.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(env, file)
			if err != nil {
				return err
			}
			return startError(env, serve(cmd.Context(), env, cfg, false, func() (config.Config, error) { return loadConfig(env, file) }), cfg, file)
		},
	}
	check := &cobra.Command{
		Use: "check", Short: "Tell all that is wrong with the configuration",
		RunE: func(*cobra.Command, []string) error {
			cfg, err := loadConfig(env, file)
			if err != nil {
				return err
			}
			return checkConfig(env, cfg)
		},
	}
	c := group("server", "The server", nil, run, initCommand(env, &file), acceptRestoredCommand(env, &file), replaceSealingKeyCommand(env, &file), group("config", "Its configuration", nil, check))
	c.PersistentFlags().StringVar(&file, "config", "", "configuration file (default countersign.yaml in the data folder, if it is there)")
	return c
}

// serverFlags are the flags with which a server command finds the same server again.
func serverFlags(env *Env, cfg config.Config, file string) string {
	flags := ""
	if file != "" {
		flags = " --config " + file
	}
	if env.dir != "" || file == "" {
		flags += " --dir " + cfg.Dir
	}
	return flags
}

// startError adds to the error of a start the command that helps.
func startError(env *Env, err error, cfg config.Config, file string) error {
	flags := serverFlags(env, cfg, file)
	switch {
	case errors.Is(err, server.ErrNotFounded):
		return withNext(err, "found one with: countersign server init"+flags+"; if there was one, restore its database, or name its data folder with --dir or its configuration with --config")
	case errors.Is(err, server.ErrRestored):
		return withNext(err, "restore a newer state of the database; if there is none: countersign server accept-restored"+flags+", which records what is missing and raises the CRL numbers")
	case errors.Is(err, server.ErrSealingKey):
		return withNext(err, nextText(err)+": countersign server replace-sealing-key"+flags)
	case errors.Is(err, server.ErrNotDev):
		return withNext(err, "run it with: countersign server run --dir "+cfg.Dir+"; or name another folder to try things out")
	}
	return err
}

// nextText is the next step that an error brings along.
func nextText(err error) string {
	if e, ok := errors.AsType[*countersign.Error](err); ok {
		return e.Next
	}
	return ""
}

// withNext is err with another next step.
func withNext(err error, next string) error {
	e, ok := errors.AsType[*countersign.Error](err)
	if !ok {
		return err
	}
	told := *e
	told.Next = next
	return &told
}

// loadConfig reads the file that was named, or the one in the data folder, or
// none. The folder of the flag or the environment wins over the file's.
func loadConfig(env *Env, file string) (config.Config, error) {
	var cfg config.Config
	path := file
	if path == "" {
		path = filepath.Join(env.dataDir(), configName)
	}
	cfg, err := config.Load(path)
	if errors.Is(err, fs.ErrNotExist) && file == "" {
		cfg, err = config.Config{}, nil
	}
	if err != nil {
		return cfg, usagef("%v", err)
	}
	cfg = cfg.Overlay(env.Getenv)
	if env.dir != "" {
		cfg.Dir = env.dir
	}
	return cfg.WithDefaults(), nil
}

func checkConfig(env *Env, cfg config.Config) error {
	if err := refuseBad(env, cfg); err != nil {
		return err
	}
	env.stderr().done("the configuration is good")
	return nil
}

// refuseBad tells all problems of a configuration at once.
func refuseBad(env *Env, cfg config.Config) error {
	problems := cfg.Check()
	p := env.stderr()
	for _, problem := range problems {
		p.linef("%s %s", p.red("[fail]"), printable(problem.Error()))
	}
	if len(problems) > 0 {
		return failed(exitUsage)
	}
	return nil
}

func fingerprint(c countersign.Authority) string {
	return "SHA256:" + server.Fingerprint(c.Certificate.Raw)
}

// serve runs a server until a signal ends it. again reads the configuration anew at
// SIGHUP.
func serve(ctx context.Context, env *Env, cfg config.Config, dev bool, again func() (config.Config, error)) error {
	if err := refuseBad(env, cfg); err != nil {
		return err
	}
	opts, level := options(env, cfg, dev), &slog.LevelVar{}
	opts.Log = logger(env, cfg.Log, level)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // before the start, which it must not end
	defer signal.Stop(hangups)
	var s *server.Server
	opts.Ready = func() {
		if !dev {
			listening(env, s.Endpoints())
		}
		notify(env, "READY=1")
	}
	s, err := server.New(ctx, cfg, opts)
	if err != nil {
		return err
	}
	if dev {
		greet(env, cfg, s.Endpoints(), s.Authorities())
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	go onHangup(serving, env, s, hangup{hangups, again, level, opts.Log})
	stopping := sync.OnceFunc(func() { notify(env, "STOPPING=1") })
	context.AfterFunc(ctx, stopping) // at the signal: Run returns after the last session
	err = s.Run(ctx)
	stopping()
	return err
}

func options(env *Env, cfg config.Config, dev bool) server.Options {
	return server.Options{Now: env.Now, Log: logger(env, cfg.Log, &slog.LevelVar{}), Dev: dev}
}

// logger writes to standard error: text for a terminal, JSON for a collector. It sets
// the level, which may change later.
func logger(env *Env, cfg config.Log, level *slog.LevelVar) *slog.Logger {
	_ = level.UnmarshalText([]byte(cfg.Level)) // Check refuses what is no level; this may be before Check
	if cfg.Format == "json" || cfg.Format == "auto" && !isTerminal(env.Err) {
		return slog.New(slog.NewJSONHandler(env.Err, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(env.Err, &tint.Options{Level: level, NoColor: !env.wantsColor(env.Err)}))
}

// greet prints what a person who tries the program needs first.
func greet(env *Env, cfg config.Config, e api.Endpoints, authorities []countersign.Authority) {
	p := env.stdout()
	p.linef("countersign dev: data in %s, loopback only, keys on disk: not for production", cfg.Dir)
	p.linef("  enroll   %-28s EST, REST, tokens", e.Enroll)
	p.linef("  mqtt     %-28s client certificate, or what the fleet accepts", e.MQTT)
	p.linef("  browser  %-28s MQTT over WebSocket, access token", e.WebSocket)
	p.linef("  api      %-28s reference at %s/openapi.json", e.API+api.Base, api.Base)
	p.linef("  status   %-28s CRL, OCSP", e.Status)
	p.linef("  roots    %s", e.Roots)
	var chain []string
	for _, c := range authorities {
		if c.Kind == countersign.RootAuthority {
			p.linef("  root     %s", fingerprint(c))
		}
		chain = append(chain, fmt.Sprintf("%q", c.Certificate.Subject.CommonName))
	}
	p.linef("           %s", strings.Join(chain, "  ->  "))
	dir := ""
	if cfg.Dir != config.DefaultDir {
		dir = " --dir " + cfg.Dir
	}
	p.linef("Next: in another terminal   %s enroll token --fleet default --uses 1 --ttl 1h%s", programName(), dir)
}

// programName is how this program was called, for commands to be copied.
func programName() string {
	if strings.Contains(os.Args[0], "go-build") { // go run
		return "go run ./cmd/countersign"
	}
	return os.Args[0]
}
