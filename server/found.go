package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/store"
)

// found makes root, issuing authority, profiles and the default fleet on a new
// database. On one that has them it does nothing.
func (s *Server) found(ctx context.Context) error {
	if len(s.ca.Authorities()) > 0 {
		return nil
	}
	org := "Countersign"
	if s.opts.Dev {
		org = "Dev"
	}
	f, err := s.ca.Found(ctx, org)
	if err != nil {
		return fmt.Errorf("make the first authorities: %w", err)
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := s.ca.RecordFounding(ctx, tx, f); err != nil {
			return err
		}
		fleet := countersign.Fleet{
			Name: countersign.DefaultFleet, Issuer: ca.IssuingID, Profile: ca.ProfileDevice,
			Methods: []countersign.Method{countersign.MethodToken}, Overlap: s.cfg.Overlap,
		}
		if err := s.registry.SaveFleet(ctx, tx, fleet); err != nil {
			return err
		}
		return s.events.Append(ctx, tx,
			countersign.Event{Type: countersign.AuthorityCreated, Actor: countersign.System, Cert: countersign.CertRef{Issuer: ca.RootID}, Reason: "first start"},
			countersign.Event{Type: countersign.AuthorityCreated, Actor: countersign.System, Cert: countersign.CertRef{Issuer: ca.IssuingID}, Reason: "first start"},
			countersign.Event{Type: countersign.FleetSaved, Actor: countersign.System, Fleet: fleet.Name, Reason: "first start"},
		)
	})
	if errors.Is(err, store.ErrExists) { // another node was first
		err = nil
	}
	if err != nil {
		return fmt.Errorf("record the first authorities: %w", err)
	}
	return s.ca.Reload(ctx)
}

// writeRoots puts the trust anchors where devices' makers find them.
func (s *Server) writeRoots() error {
	var out strings.Builder
	for _, a := range s.ca.Authorities() {
		if a.Kind != countersign.RootAuthority {
			continue
		}
		fmt.Fprintf(&out, "# %s  SHA-256 %s\n", a.Subject, Fingerprint(a.Certificate.Raw))
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw}); err != nil {
			return err
		}
	}
	return writeFile(s.cfg.Path(rootsName), []byte(out.String()), 0o644)
}

// Fingerprint is the SHA-256 of a certificate as people compare it.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// writeFile puts a file in place whole or not at all, with its final mode.
func writeFile(path string, data []byte, mode os.FileMode) error {
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode) //nolint:gosec // the path is the server's own, the mode the file's own
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// databaseURL is where the store opens.
func databaseURL(cfg config.Config) (string, error) {
	url, err := cfg.Database.Resolve()
	if err != nil || url != "" {
		return url, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return "", err
	}
	return "sqlite:" + filepath.Join(dir, "countersign.db"), nil
}

// nodeName tells this process from others on one database.
func nodeName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	return host + "/" + strconv.Itoa(os.Getpid())
}
