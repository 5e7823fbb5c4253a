package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/keycheck"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/watermark"
)

const (
	keysDir = "keys"
	sealURI = "file:keys/seal.key"
)

// ErrKeys means that this node has not the keys of its database.
var ErrKeys = errors.New("keys do not fit the database")

// ErrSealingKey means that the sealing key is among them; one that is lost for good can
// be replaced.
var ErrSealingKey = errors.New("the sealing key does not fit the database")

// keyFaults are what is wrong with the keys of a node.
type keyFaults struct {
	keys   *keystore.Store
	said   []string
	copies []string // files that another node or a backup has
	other  []string // what else is to be done
	sealer bool     // the sealing key is one of them
}

// add notes why a key cannot be used. name is what it is for people.
func (f *keyFaults) add(name, uri string, err error) {
	if err == nil {
		return
	}
	file := strings.TrimPrefix(uri, "file:")
	say := func(format string) { f.said = append(f.said, fmt.Sprintf(format, name, file)) }
	switch {
	case errors.Is(err, fs.ErrNotExist):
		say("the %s, %s, is missing")
		f.copies = append(f.copies, file)
	case errors.Is(err, ca.ErrOtherKey):
		say("the %s, %s, is not the one in the authority's certificate")
		f.copies = append(f.copies, file)
	case errors.Is(err, keycheck.ErrOther):
		say("the %s, %s, is not the one that this database was founded with")
		f.copies = append(f.copies, file)
	case errors.Is(err, keycheck.ErrNewer):
		say("the %s, %s, has a check value that this program cannot compare")
		f.other = append(f.other, "run the newer program that recorded it")
	case errors.Is(err, keystore.ErrPassphraseMissing):
		say("the %s, %s, is encrypted, and root_passphrase is not set")
		f.other = append(f.other, "set root_passphrase to a file: or env: reference of its passphrase")
	case errors.Is(err, keystore.ErrPassphraseWrong):
		say("root_passphrase does not open the %s, %s; a damaged file would look the same")
		f.other = append(f.other, "correct root_passphrase, or restore the file")
	case errors.Is(err, fs.ErrPermission):
		say("the %s, %s, cannot be read: permission denied")
		f.other = append(f.other, "run the server as the user that owns the file")
	default:
		f.said = append(f.said, fmt.Sprintf("the %s, %s, cannot be used: %v", name, file, err))
		f.copies = append(f.copies, file)
	}
}

// err words all of them at once, with the files to copy; nil if there are none.
func (f *keyFaults) err() error {
	if len(f.said) == 0 {
		return nil
	}
	next := f.other
	if len(f.copies) > 0 {
		dir := f.keys.Dir
		if abs, err := filepath.Abs(dir); err == nil {
			dir = abs
		}
		next = append(next, fmt.Sprintf("copy %s from another node of this database, or from the backup, to %s, readable by the server's user alone (mode 0600)", strings.Join(f.copies, " and "), dir))
	}
	cause := ErrKeys
	if f.sealer {
		cause = errors.Join(ErrKeys, ErrSealingKey)
		next = append(next, "where the sealing key is lost for good, replace it")
	}
	return countersign.Errorf(countersign.Conflict, "this node does not have the keys of its database: %s", strings.Join(f.said, "; ")).
		WithNext(strings.Join(next, "; ")).WithCause(cause)
}

// openKeys opens every key that this node needs, compares it with what the database
// knows of it, and refuses to go on with what is missing or another one. Nothing is
// ever made in the place of a missing key.
func (s *Server) openKeys(ctx context.Context) error {
	faults := &keyFaults{keys: s.keys}
	s.checkSigners(ctx, faults)
	sealer, fault := s.keys.OpenSealer(sealURI)
	if fault == nil {
		fits, err := s.sealerFits(ctx, sealer)
		if err != nil {
			return err
		}
		fault = fits
	}
	faults.add("sealing key", sealURI, fault)
	faults.sealer = errors.Is(fault, fs.ErrNotExist) || errors.Is(fault, keycheck.ErrOther)
	if err := faults.err(); err != nil {
		return err
	}
	s.sealer = sealer
	return s.recordSealer(ctx, sealer)
}

// checkSigners opens the keys of the authorities.
func (s *Server) checkSigners(ctx context.Context, faults *keyFaults) {
	for _, a := range s.ca.Authorities() {
		if a.KeyURI == "" { // registered: its key is not ours
			continue
		}
		err := s.ca.CheckSigner(a.ID)
		if a.Kind != countersign.RootAuthority {
			faults.add("key of the authority "+a.ID, a.KeyURI, err)
			continue
		}
		if s.cfg.OfflineRoot && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		faults.add("root key", a.KeyURI, err)
		wrapped, err := s.keys.Wrapped(a.KeyURI)
		switch {
		case err != nil || wrapped || s.opts.Dev:
		case s.cfg.RootPassphrase != "":
			s.log.WarnContext(ctx, "root key is not encrypted although root_passphrase is set: encrypt it with openssl pkcs8 -topk8", "file", s.keys.Path(a.KeyURI))
		default:
			s.log.WarnContext(ctx, "root key is not encrypted: only the mode of its file protects it", "file", s.keys.Path(a.KeyURI))
		}
	}
}

// sealerFits returns why a sealing key is not the one of this database; nil if it is. A
// database from before check values were recorded has none: then the key must open
// what is sealed there.
func (s *Server) sealerFits(ctx context.Context, sealer *keystore.Sealer) (fault, err error) {
	recorded, err := keycheck.List(ctx, s.db)
	if err != nil {
		return nil, err
	}
	if len(recorded) > 0 {
		have, err := keycheck.Of(sealer)
		return keycheck.Compare(have, recorded), err
	}
	for _, opens := range []func() (bool, bool, error){
		func() (bool, bool, error) { return access.OpensSecrets(ctx, s.db, sealer) },
		func() (bool, bool, error) { return s.registry.OpensKeys(ctx, sealer) },
	} {
		ok, found, err := opens()
		if err != nil {
			return nil, err
		}
		if found && !ok {
			return keycheck.ErrOther, nil
		}
	}
	return nil, nil
}

// recordSealer records the check values that are not on record yet. A database that
// cannot be written now gets them at the next start.
func (s *Server) recordSealer(ctx context.Context, sealer *keystore.Sealer) error {
	recorded, err := keycheck.List(ctx, s.db)
	if err != nil {
		return err
	}
	have, err := keycheck.Of(sealer)
	if err != nil || len(recorded) == len(have) {
		return err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return keycheck.Record(ctx, tx, have, s.opts.Now()) })
	if countersign.CodeOf(err) == countersign.Unavailable {
		s.log.WarnContext(ctx, "check values of keys not recorded", "error", err)
		return nil
	}
	return err
}

// exists reports whether a key's file is there.
func (s *Server) exists(uri string) bool {
	_, err := os.Stat(s.keys.Path(uri))
	return err == nil
}

// ReplaceSealingKey makes a new sealing key for a database whose own one is lost, and
// returns its file. A key that is there is kept beside it. The server must not run. It
// returns Conflict where the key fits.
func ReplaceSealingKey(ctx context.Context, cfg config.Config, opts Options) (path string, err error) {
	opts.Founding, opts.Dev = nil, false
	s, err := open(ctx, cfg, opts, func(s *Server) []step {
		return []step{s.openStore, s.openKeepers, s.found, s.replaceSealer}
	})
	if err != nil {
		return "", err
	}
	return s.keys.Path(sealURI), s.Close()
}

func (s *Server) replaceSealer(ctx context.Context) error {
	old, err := s.keys.OpenSealer(sealURI)
	if err == nil {
		fault, err := s.sealerFits(ctx, old)
		if err != nil {
			return err
		}
		if fault == nil {
			return countersign.Errorf(countersign.Conflict, "the sealing key is the one of this database: there is nothing to replace")
		}
	}
	path := s.keys.Path(sealURI)
	if s.exists(sealURI) {
		if err := os.Rename(path, path+".replaced-"+s.opts.Now().UTC().Format("20060102T150405Z")); err != nil {
			return fmt.Errorf("keep the old sealing key: %w", err)
		}
	}
	sealer, err := s.keys.MakeSealer(sealURI)
	if err != nil {
		return err
	}
	checks, err := keycheck.Of(sealer)
	if err != nil {
		return err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := keycheck.Record(ctx, tx, checks, s.opts.Now()); err != nil {
			return err
		}
		return s.events.Append(ctx, tx, countersign.Event{
			Type: countersign.SealingKeyReplaced, Actor: s.opts.By, Via: "cli", Reason: "the old one was lost: what was sealed with it cannot be opened", Data: map[string]string{"node": s.markNode()},
		})
	})
	if err != nil {
		return fmt.Errorf("record the new sealing key: %w", err)
	}
	// The last state that was seen is authenticated with the old key.
	return ignoreMissing(os.Rename(s.cfg.Path(watermark.Name), s.cfg.Path(watermark.Name)+".replaced"))
}
