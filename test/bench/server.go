package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
)

// server is the program under test on a data folder of its own.
type server struct {
	*process
	program  string
	data     string // folder
	database string // URL of a PostgreSQL; empty: SQLite
	quiet    time.Duration
	under    []string // start of the command that runs the program; empty: it is run itself

	endpoints api.Endpoints
	admin     *sdk.Admin
}

// build builds the server as it is released, unless there is one to measure.
func (s *server) build(ctx context.Context) error {
	if s.program != "" {
		return nil
	}
	s.program = s.data + "-countersign"
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", s.program, "github.com/countersign-iot/countersign/cmd/countersign") //nolint:gosec // our own program
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("couldn't build the server: %w: %s", err, text)
	}
	return nil
}

// start runs the released program. A second start continues the first.
func (s *server) start(ctx context.Context) error {
	if err := os.MkdirAll(s.data, 0o700); err != nil { //nolint:gosec // our own folder
		return err
	}
	// As countersign dev, with the database of our choice.
	config := `names: ["127.0.0.1"]
listeners: {enroll: "127.0.0.1:0", mqtt: "127.0.0.1:0", api: "127.0.0.1:0", status: "127.0.0.1:0"}
log: {level: warn, format: json}
`
	if s.database != "" {
		config += "database: env:BENCH_DATABASE\n"
	}
	if err := os.WriteFile(filepath.Join(s.data, "countersign.yaml"), []byte(config), 0o600); err != nil { //nolint:gosec // our own folder
		return err
	}
	// The server is not ended by ctx: stop does that in order.
	founding, run := s.command(ctx, "init"), s.command(context.WithoutCancel(ctx), "run")
	if out, err := founding.CombinedOutput(); err != nil {
		return fmt.Errorf("couldn't found the server: %w: %s", err, out)
	}
	var err error
	if s.process, err = start(run, s.quiet); err != nil {
		return err
	}
	path := filepath.Join(s.data, api.EndpointsFile)
	if err := s.await(ctx, func() bool { _, err := os.Stat(path); return err == nil }); err != nil { //nolint:gosec // our own folder
		return err
	}
	text, err := os.ReadFile(path) //nolint:gosec // our own folder
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &s.endpoints); err != nil {
		return fmt.Errorf("couldn't read %s: %w", path, err)
	}
	s.admin = sdk.Local(s.endpoints.Socket)
	return nil
}

// command is the program's command server of that name.
func (s *server) command(ctx context.Context, name string) *exec.Cmd {
	args := append(slices.Clone(s.under), s.program, "server", name, "--dir", s.data)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // built above
	cmd.Env = append(os.Environ(), "BENCH_DATABASE="+s.database)
	return cmd
}

// restart replaces the server's process by a new one.
func (s *server) restart(ctx context.Context) error {
	if err := s.stop(); err != nil {
		return err
	}
	return s.start(ctx)
}
