package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/keystore"
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
folder lists them, once all of them accept.`,
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
			if err := refuseBad(env, cfg); err != nil {
				return err
			}
			env.stderr().done("the configuration is good")
			return nil
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

// refuseBad prints all problems of a configuration and fails if there are any.
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
	go onHangup(serving, s, hangup{hangups, again, level, opts.Log})
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

// initCommand founds a server. file is the flag --config of the group.
func initCommand(env *Env, file *string) *cobra.Command {
	plan := ca.Plan{}
	c := &cobra.Command{
		Use: "init", Short: "Found a server: make its keys, its database and the first authorities, and stop",
		Long: `Make what a server begins with: the data folder, the database's tables, the keys of
a root and an issuing authority, their certificates, the sealing key, and a fleet
named default that accepts tokens. It is done once; on a database that has
authorities it changes nothing. Set root_passphrase first: it encrypts the root key.

The names and the ends of the authorities cannot be changed later: they are in every
certificate.`,
		Example: `  countersign server init --config /etc/countersign/countersign.yaml --name "Example Devices"
  countersign server init --organization "Example Inc." --country DE --root-key P-384 --root-validity 7300d`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(env, *file)
			if err != nil {
				return err
			}
			if err := plan.Check(); err != nil {
				return usagef("%v", err)
			}
			var given []string
			for _, name := range planFlags {
				if cmd.Flags().Changed(name) {
					given = append(given, "--"+name)
				}
			}
			return startError(env, initialize(cmd.Context(), env, cfg, founding{plan, given, *file}), cfg, *file)
		},
	}
	f := c.Flags()
	f.StringVar(&plan.Name, "name", "Countersign", "in front of Root and Issuing in the names of the authorities")
	f.StringVar(&plan.RootName, "root-name", "", "common name of the root (default name and Root)")
	f.StringVar(&plan.IssuingName, "issuing-name", "", "common name of the issuing authority (default name and Issuing)")
	f.StringVar(&plan.Organization, "organization", "", "organization (O) in both names")
	f.StringVar(&plan.Country, "country", "", "country (C) in both names, two letters")
	f.StringVar(&plan.RootKey, "root-key", keystore.KeyTypes[0], "type of the root's key: "+strings.Join(keystore.KeyTypes, ", "))
	f.StringVar(&plan.IssuingKey, "issuing-key", keystore.KeyTypes[0], "type of the issuing authority's key, of the same")
	durationFlag(f, &plan.RootValidity, "root-validity", ca.DefaultRootValidity, "how long the root is valid, 30d to 18250d")
	durationFlag(f, &plan.IssuingValidity, "issuing-validity", 0, "how long the issuing authority is valid, at most as long as the root (default 1095d)")
	complete(c, "root-key", keystore.KeyTypes...)
	complete(c, "issuing-key", keystore.KeyTypes...)
	return c
}

// planFlags are those that only a founding heeds.
var planFlags = []string{"name", "root-name", "issuing-name", "organization", "country", "root-key", "issuing-key", "root-validity", "issuing-validity"}

// founding is what the command line says of one.
type founding struct {
	plan  ca.Plan
	given []string // flags of the plan
	file  string   // of the configuration
}

func initialize(ctx context.Context, env *Env, cfg config.Config, f founding) error {
	if err := refuseBad(env, cfg); err != nil {
		return err
	}
	opts := options(env, cfg, false)
	opts.Founding = &f.plan
	authorities, made, err := server.Init(ctx, cfg, opts)
	if err != nil {
		return err
	}
	p := env.stderr()
	for _, c := range authorities {
		if c.KeyURI != "" {
			p.done("%s authority %s  %s", c.Kind, c.ID, fingerprint(c))
		}
	}
	if !made {
		p.linef("These authorities were there already; nothing was changed.")
		if len(f.given) > 0 {
			return countersign.Errorf(countersign.Conflict, "%s had no effect: the authorities cannot be changed", strings.Join(f.given, ", ")).
				WithNext("leave the flags out; for other authorities found another data folder and database")
		}
	}
	if cfg.RootPassphrase == "" {
		p.linef("%s the root key is not encrypted: set root_passphrase before production", p.yellow("Warning:"))
	}
	p.next("countersign server run%s", serverFlags(env, cfg, f.file))
	return nil
}

// acceptRestoredCommand accepts a database that a start refused as too old.
func acceptRestoredCommand(env *Env, file *string) *cobra.Command {
	return mendCommand(env, &cobra.Command{
		Use: "accept-restored", Short: "Accept a database that is older than the last state that this node saw",
		Long: `A start refuses a database that is older than the last state that this node saw: it
was restored from a backup, and what was recorded since then is lost, revocations too.
Where there is no newer state this command accepts the loss. It raises the numbers of
the CRLs above those that were published, has the log go on behind what it lost, and
records what is missing in an event, which doctor, the audit and an alert show. Do it
on each node that refuses, while the node is stopped.`,
		Example: "  countersign server accept-restored --config /etc/countersign/countersign.yaml",
	}, file, mending{"Accept that what was recorded since the backup is lost, revocations too?", func(ctx context.Context, p printer, cfg config.Config, opts server.Options) error {
		lost, err := server.AcceptRestored(ctx, cfg, opts)
		if err == nil {
			p.done("accepted: %s", lost)
			p.linef("Find out what was recorded in between, revocations first, and do it again.")
		}
		return err
	}})
}

// replaceSealingKeyCommand makes a new sealing key where the old one is lost.
func replaceSealingKeyCommand(env *Env, file *string) *cobra.Command {
	return mendCommand(env, &cobra.Command{
		Use: "replace-sealing-key", Short: "Make a new sealing key where the old one is lost for good",
		Long: `The sealing key, keys/seal.key, encrypts the symmetric keys and SCRAM secrets of devices
in the database and authenticates access tokens. A start refuses to go on without it.
Where neither another node nor a backup has it any more, this command makes a new one:
what was sealed with the old one is lost, and those devices need new keys or secrets.
Copy the new key to the other nodes.`,
		Example: "  countersign server replace-sealing-key --config /etc/countersign/countersign.yaml",
	}, file, mending{"Give up all that was sealed with the old key?", func(ctx context.Context, p printer, cfg config.Config, opts server.Options) error {
		path, err := server.ReplaceSealingKey(ctx, cfg, opts)
		if err == nil {
			p.done("a new sealing key is in %s", path)
		}
		return err
	}})
}

// mending is what a command that mends a server asks, and does and writes after a yes.
type mending struct {
	question string
	do       func(ctx context.Context, p printer, cfg config.Config, opts server.Options) error
}

// mendCommand does something to a server that is stopped, after a person said yes. file
// is the flag --config of the group.
func mendCommand(env *Env, c *cobra.Command, file *string, m mending) *cobra.Command {
	var yes bool
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(env, *file)
		if err != nil {
			return err
		}
		if err := refuseBad(env, cfg); err != nil {
			return err
		}
		if err := env.confirm(yes, m.question); err != nil {
			return err
		}
		opts := options(env, cfg, false)
		opts.By = localOperator()
		if err := m.do(cmd.Context(), env.stderr(), cfg, opts); err != nil {
			return startError(env, err, cfg, *file)
		}
		env.stderr().next("countersign server run%s", serverFlags(env, cfg, *file))
		return nil
	}
	return c
}

// localOperator names the Unix user who acts on this machine.
func localOperator() countersign.Actor {
	if u, err := user.Current(); err == nil {
		return countersign.OperatorActor("local:" + u.Username)
	}
	return countersign.OperatorActor("local")
}
