package server

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
)

const (
	// devName marks a folder that was made for trying out. Only such a one is founded
	// without being asked.
	devName = "development.txt"
	devText = "countersign dev or demo made this folder, to try things out: its keys protect nothing.\nRemove the folder to begin anew.\n"
	// devOrg is in the names of its authorities.
	devOrg = "Dev"
	// databaseName is the embedded database.
	databaseName = "countersign.db"
	// configName is the configuration that an operator put there.
	configName = "countersign.yaml"
)

// ErrNotDev means that a folder was not made for trying out, and development may not
// touch it.
var ErrNotDev = errors.New("not a folder of development")

// claimDev takes a folder for development: one that is new, or that was taken before.
// A folder with anything of a server in it is in production.
func claimDev(cfg config.Config) error {
	path := cfg.Path(devName)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	for _, name := range []string{databaseName, keysDir, configName, rootsName, portsName} {
		_, err := os.Stat(cfg.Path(name))
		if err == nil && !devRoots(cfg.Path(rootsName)) {
			return countersign.Errorf(countersign.Conflict, "%s holds %s of a server that was not made for trying out", cfg.Dir, name).
				WithNext("name another folder").WithCause(ErrNotDev)
		}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	return writeFile(path, []byte(devText), 0o644)
}

// IsDev reports whether a data folder was made for trying out.
func IsDev(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, devName))
	return err == nil || devRoots(filepath.Join(dir, rootsName))
}

// devRoots recognizes a folder for development from before they were marked, by the
// name of its root.
func devRoots(path string) bool {
	b, err := os.ReadFile(path) //nolint:gosec // a file of ours
	if err != nil {
		return false
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return false
	}
	root, err := x509.ParseCertificate(block.Bytes)
	return err == nil && root.Subject.CommonName == devOrg+" Root"
}

// openPlace makes the data folder where something is to be made in it.
func (s *Server) openPlace() error {
	if s.opts.Dev {
		return claimDev(s.cfg)
	}
	if s.opts.Founding == nil && s.cfg.Database == "" {
		return nil // the database is there, or the server is refused
	}
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	return nil
}

// ErrNotFounded means that the database has no authority and that this start may not
// make one.
var ErrNotFounded = errors.New("not founded")

func (s *Server) errNotFounded() error {
	where := "PostgreSQL"
	if s.cfg.Database == "" {
		where = s.cfg.Path(databaseName)
		if abs, err := filepath.Abs(where); err == nil {
			where = abs
		}
	}
	return countersign.Errorf(countersign.NotFound, "there is no authority in the database (%s): nothing was founded here", where).
		WithNext("found one; if there was one, restore its database or name its data folder").WithCause(ErrNotFounded)
}
