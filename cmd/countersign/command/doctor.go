package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/spf13/cobra"
)

const (
	// lowDisk warns while there is time; noDisk is where writes begin to fail.
	lowDisk = 1 << 30
	noDisk  = 64 << 20
	// caWarn is how long before its end an authority wants a successor.
	caWarn = 90 * 24 * time.Hour
	// certWarn: a device that renews in time never comes this close.
	certWarn = 3 * 24 * time.Hour
	// certCount is as far as certificates are looked through for late ones.
	certCount = 10_000
)

func doctorCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Look for what is wrong, and say how to mend it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := api.Doctor{Checks: examine(cmd.Context(), env)}
			if err := printChecks(env, d); err != nil {
				return err
			}
			for _, c := range d.Checks {
				if c.Level == api.LevelFail {
					return failed(exitFailed)
				}
			}
			return nil
		},
	}
}

func printChecks(env *Env, d api.Doctor) error {
	if env.output != formatTable {
		return show(env, d, view[api.Doctor]{name: func(d api.Doctor) string {
			var names []string
			for _, c := range d.Checks {
				if c.Level != api.LevelOK {
					names = append(names, c.Name)
				}
			}
			return strings.Join(names, "\n")
		}})
	}
	p := env.stdout()
	mark := map[string]string{
		api.LevelOK: p.green("[ok]  "), api.LevelWarn: p.yellow("[warn]"), api.LevelFail: p.red("[fail]"),
	}
	for _, c := range d.Checks {
		p.linef("%s %-12s %s", mark[c.Level], printable(c.Name), printable(c.Message))
		if c.Fix != "" {
			p.linef("       fix: %s", printable(c.Fix))
		}
	}
	return nil
}

// examine runs the checks of this side, then has the server run its own.
func examine(ctx context.Context, env *Env) []api.Check {
	checks := []api.Check{checkDir(env), checkKeys(env), checkDisk(env)}
	admin := env.admin()
	v, err := admin.Version(ctx)
	if err != nil {
		return append(checks, api.Check{Name: "server", Level: api.LevelFail, Message: err.Error(), Fix: nextStep(env, err)})
	}
	checks = append(checks, api.Check{
		Name: "server", Level: api.LevelOK,
		Message: fmt.Sprintf("answers on %s, version %s", filepath.Join(env.dataDir(), config.SocketName), v.Version),
	})
	checks = append(checks, checkAuthorities(ctx, env), checkCertificates(ctx, env))
	d, err := admin.Doctor(ctx)
	if err != nil {
		return append(checks, api.Check{Name: "server checks", Level: api.LevelFail, Message: err.Error(), Fix: nextStep(env, err)})
	}
	return append(checks, d.Checks...)
}

func checkDir(env *Env) api.Check {
	dir := env.dataDir()
	c := api.Check{Name: "data folder", Level: api.LevelOK, Message: dir + " is private"}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Level, c.Message, c.Fix = api.LevelFail, dir+" is not there", howToStart(env)
	case err != nil:
		c.Level, c.Message = api.LevelFail, err.Error()
	case !info.IsDir():
		c.Level, c.Message, c.Fix = api.LevelFail, dir+" is no folder", "name another with --dir"
	case info.Mode().Perm()&0o007 != 0:
		c.Level, c.Message = api.LevelFail, fmt.Sprintf("%s is open to everybody (mode %o)", dir, info.Mode().Perm())
		c.Fix = "chmod o-rwx " + dir
	}
	return c
}

// checkKeys looks at the files that hold private keys.
func checkKeys(env *Env) api.Check {
	var open []string
	n := 0
	err := filepath.WalkDir(env.dataDir(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !holdsKey(path) {
			return nil //nolint:nilerr // the check of the data folder reports a folder that cannot be read
		}
		n++
		if info, err := e.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
			open = append(open, path)
		}
		return nil
	})
	if err != nil || len(open) == 0 {
		return api.Check{Name: "keys", Level: api.LevelOK, Message: fmt.Sprintf("%d key files, readable by their owner only", n)}
	}
	return api.Check{
		Name: "keys", Level: api.LevelFail, Message: "others may read " + strings.Join(open, ", "),
		Fix: "chmod 600 " + strings.Join(open, " ") + ", and think about who may have read them",
	}
}

// holdsKey reports whether the file is a private key in PEM.
func holdsKey(path string) bool {
	f, err := os.Open(path) //nolint:gosec // below the data folder
	if err != nil {
		return false
	}
	defer f.Close()
	var head [100]byte
	n, _ := io.ReadFull(f, head[:])
	return strings.Contains(string(head[:n]), "PRIVATE KEY-----")
}

func checkDisk(env *Env) api.Check {
	var st syscall.Statfs_t
	if err := syscall.Statfs(env.dataDir(), &st); err != nil {
		return api.Check{Name: "disk", Level: api.LevelWarn, Message: "couldn't tell how much is free: " + err.Error()}
	}
	free := st.Bavail * uint64(st.Bsize) //nolint:gosec // a block size is positive
	c := api.Check{Name: "disk", Level: api.LevelOK, Message: fmt.Sprintf("%d MiB free", free>>20)}
	if free < lowDisk {
		c.Level, c.Fix = api.LevelWarn, "make room: enrollment stops when the disk is full"
	}
	if free < noDisk {
		c.Level = api.LevelFail
	}
	return c
}

func checkAuthorities(ctx context.Context, env *Env) api.Check {
	c := api.Check{Name: "authorities", Level: api.LevelOK}
	n := 0
	var first time.Time
	for ca, err := range env.admin().Authorities(ctx) {
		if err != nil {
			return api.Check{Name: c.Name, Level: api.LevelFail, Message: err.Error(), Fix: nextStep(env, err)}
		}
		if ca.State != "active" {
			continue
		}
		n++
		if first.IsZero() || ca.NotAfter.Before(first) {
			first = ca.NotAfter
			c.Message = fmt.Sprintf("%s is the first to expire: %s", ca.ID, env.until(ca.NotAfter))
		}
	}
	switch left := first.Sub(env.Now()); {
	case n == 0:
		c.Level, c.Message, c.Fix = api.LevelFail, "there is no active authority", "found one with: countersign server init --dir "+env.dataDir()
	case left < 0:
		c.Level, c.Fix = api.LevelFail, "nothing that it signed is valid any more: make a new authority and enroll the devices again"
	case left < caWarn:
		c.Level, c.Fix = api.LevelWarn, "plan its successor: certificates cannot outlive their issuer"
	}
	return c
}

func checkCertificates(ctx context.Context, env *Env) api.Check {
	c := api.Check{Name: "certificates", Level: api.LevelOK, Message: "no active one expires within " + span(certWarn)}
	f := api.CertificateFilter{State: "active", ExpiresBefore: env.Now().Add(certWarn)}
	n, seen := 0, 0
	for cert, err := range env.admin().Certificates(ctx, f) {
		if err != nil {
			return api.Check{Name: c.Name, Level: api.LevelFail, Message: err.Error(), Fix: nextStep(env, err)}
		}
		if cert.State == "active" && cert.Device != "" { // not long expired, nor the authority's own
			n++
		}
		if seen++; seen == certCount {
			break
		}
	}
	if n > 0 {
		c.Level, c.Message = api.LevelWarn, fmt.Sprintf("%d active ones expire within %s: their devices do not renew", n, span(certWarn))
		c.Fix = fmt.Sprintf("countersign cert list --state active --expires-within %s", certWarn)
	}
	return c
}
