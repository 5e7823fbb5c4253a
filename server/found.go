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
	"github.com/countersign-iot/countersign/keycheck"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
)

// foundingName marks, in the data folder, a founding that has begun: keys beside it
// were made by it and have signed nothing that is on record.
const foundingName = "founding"

// found makes root, issuing authority, profiles and the default fleet on a new
// database, where this start was asked to. On one that has authorities it makes
// nothing.
func (s *Server) found(ctx context.Context) error {
	mark := s.cfg.Path(foundingName)
	if len(s.ca.Authorities()) > 0 {
		return ignoreMissing(os.Remove(mark))
	}
	plan := s.opts.Founding
	if s.opts.Dev && plan == nil {
		plan = &ca.Plan{Name: devOrg}
	}
	if plan == nil {
		return s.errNotFounded()
	}
	if err := plan.Check(); err != nil {
		return err
	}
	if err := refuseOldKeys(s.keys, mark); err != nil {
		return err
	}
	if err := writeFile(mark, []byte("The founding of this server has begun.\n"), 0o600); err != nil {
		return fmt.Errorf("mark the founding: %w", err)
	}
	f, err := s.ca.Found(ctx, *plan)
	if err != nil {
		return fmt.Errorf("make the first authorities: %w", err)
	}
	sealer, err := s.keys.MakeSealer(sealURI)
	if err != nil {
		return err
	}
	if err := s.recordFounding(ctx, f, sealer); err != nil {
		return err
	}
	s.made = true
	if err := ignoreMissing(os.Remove(mark)); err != nil {
		return err
	}
	return s.ca.Reload(ctx)
}

// refuseOldKeys refuses to found with keys that no founding of ours left behind: they
// belong to a database that is not here.
func refuseOldKeys(keys *keystore.Store, mark string) error {
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	for _, uri := range []string{ca.RootKeyURI, ca.IssuingKeyURI, sealURI} {
		if exists(keys, uri) {
			return countersign.Errorf(countersign.Conflict, "%s is there, and the database has no authority: the key belongs to another database", keys.Path(uri)).
				WithNext("restore the database of these keys, or name it in the configuration; to found anew, move the keys away")
		}
	}
	return nil
}

// recordFounding writes all that a founding makes in one transaction.
func (s *Server) recordFounding(ctx context.Context, f *ca.Founding, sealer *keystore.Sealer) error {
	checks, err := keycheck.Of(sealer)
	if err != nil {
		return err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := s.ca.RecordFounding(ctx, tx, f); err != nil {
			return err
		}
		if err := keycheck.Record(ctx, tx, checks, s.opts.Now()); err != nil {
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
	if errors.Is(err, store.ErrExists) {
		return countersign.Errorf(countersign.Conflict, "another node founded this database in the meantime").
			WithNext("remove the files in " + s.cfg.Path(keysDir) + " and " + s.cfg.Path(foundingName) + ", and copy the keys of that node")
	}
	if err != nil {
		return fmt.Errorf("record the first authorities: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// writeRoots puts the trust anchors where devices' makers find them.
func (s *Server) writeRoots(context.Context) error {
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
	return writeChanged(s.cfg.Path(rootsName), []byte(out.String()), 0o644)
}

// Fingerprint is the SHA-256 of a certificate as people compare it.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// writeChanged writes a file that is not what it should be. One that is needs no
// space, which a start on a full disk does not have.
func writeChanged(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) { //nolint:gosec // the path is the server's own
		return nil
	}
	return writeFile(path, data, mode)
}

// writeFile puts a file in place whole or not at all, with its final mode.
func writeFile(path string, data []byte, mode os.FileMode) error {
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode) //nolint:gosec // the path is the server's own, the mode the file's own
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		_ = os.Remove(tmp.Name()) // what is left of it helps no reader
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
	return "sqlite:" + filepath.Join(dir, databaseName), nil
}

// nodeName distinguishes this process from others on one database.
func nodeName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	return host + "/" + strconv.Itoa(os.Getpid())
}
