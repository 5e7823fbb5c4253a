// Package command is the command line of countersign. A command is a function of an
// Env, which holds what all commands share; the server that they talk to is found by it.
package command

import (
	"cmp"
	"io"
	"path/filepath"
	"time"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/sdk"
)

// defaultTimeout of one request: the slowest, the verification of a long log
// apart, is a revocation that waits for its list.
const defaultTimeout = 30 * time.Second

// Env is what the commands of one run share: the streams, the environment, the clock
// and the flags that every command has.
type Env struct {
	In     io.Reader
	Out    io.Writer                // data
	Err    io.Writer                // all else
	Getenv func(name string) string // os.Getenv
	Now    func() time.Time

	dir     string
	output  string
	wide    bool // tables with whole cells, whatever the terminal's width
	color   string
	noInput bool
	timeout time.Duration

	started bool // a command began its work: what fails from here on is not usage
}

// dataDir is the data folder: the flag, else the environment, else the default.
func (env *Env) dataDir() string {
	return cmp.Or(env.dir, env.Getenv("COUNTERSIGN_DIR"), config.DefaultDir)
}

// admin is the client of the server that runs on the data folder.
func (env *Env) admin() *sdk.Admin {
	c := sdk.Local(filepath.Join(env.dataDir(), config.SocketName))
	c.HTTP.Timeout = env.timeout
	return c
}

// paged is the client for a list of which limit are wanted.
func (env *Env) paged(limit int) *sdk.Admin {
	c := env.admin()
	c.PageSize = max(limit, 0)
	return c
}
