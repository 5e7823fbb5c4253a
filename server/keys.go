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
	"github.com/countersign-iot/countersign/keycheck"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
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

// keyring checks the keys of a node against its database.
type keyring struct {
	*core
	keys     *keystore.Store
	ca       *ca.CA
	registry *registry.Registry
}

// open opens every key that this node needs, compares it with what the database
// knows of it, and refuses to go on with what is missing or another one. Nothing is
// ever made in the place of a missing key.
func (k *keyring) open(ctx context.Context) (*keystore.Sealer, error) {
	faults := &keyFaults{keys: k.keys}
	k.checkSigners(ctx, faults)
	sealer, fault := k.keys.OpenSealer(sealURI)
	if fault == nil {
		fits, err := k.fits(ctx, sealer)
		if err != nil {
			return nil, err
		}
		fault = fits
	}
	faults.add("sealing key", sealURI, fault)
	faults.sealer = errors.Is(fault, fs.ErrNotExist) || errors.Is(fault, keycheck.ErrOther)
	if err := faults.err(); err != nil {
		return nil, err
	}
	return sealer, k.record(ctx, sealer)
}

// checkSigners opens the keys of the authorities.
func (k *keyring) checkSigners(ctx context.Context, faults *keyFaults) {
	for _, a := range k.ca.Authorities() {
		if a.KeyURI == "" { // registered: its key is not ours
			continue
		}
		err := k.ca.CheckSigner(a.ID)
		if a.Kind != countersign.RootAuthority {
			faults.add("key of the authority "+a.ID, a.KeyURI, err)
			continue
		}
		if k.cfg.OfflineRoot && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		faults.add("root key", a.KeyURI, err)
		wrapped, err := k.keys.Wrapped(a.KeyURI)
		switch {
		case err != nil || wrapped || k.opts.Dev:
		case k.cfg.RootPassphrase != "":
			k.log.WarnContext(ctx, "root key is not encrypted although root_passphrase is set: encrypt it with openssl pkcs8 -topk8", "file", k.keys.Path(a.KeyURI))
		default:
			k.log.WarnContext(ctx, "root key is not encrypted: only the mode of its file protects it", "file", k.keys.Path(a.KeyURI))
		}
	}
}

// fits returns why a sealing key is not the one of this database; nil if it is. A
// database from before check values were recorded has none: then the key must open
// what is sealed there.
func (k *keyring) fits(ctx context.Context, sealer *keystore.Sealer) (fault, err error) {
	recorded, err := keycheck.List(ctx, k.db)
	if err != nil {
		return nil, err
	}
	if len(recorded) > 0 {
		have, err := keycheck.Of(sealer)
		return keycheck.Compare(have, recorded), err
	}
	for _, opens := range []func() (bool, bool, error){
		func() (bool, bool, error) { return access.OpensSecrets(ctx, k.db, sealer) },
		func() (bool, bool, error) { return k.registry.OpensKeys(ctx, sealer) },
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

// record records the check values that are not on record yet. A database that
// cannot be written now gets them at the next start.
func (k *keyring) record(ctx context.Context, sealer *keystore.Sealer) error {
	recorded, err := keycheck.List(ctx, k.db)
	if err != nil {
		return err
	}
	have, err := keycheck.Of(sealer)
	if err != nil || len(recorded) == len(have) {
		return err
	}
	err = k.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return keycheck.Record(ctx, tx, have, k.now()) })
	if countersign.CodeOf(err) == countersign.Unavailable {
		k.log.WarnContext(ctx, "check values of keys not recorded", "error", err)
		return nil
	}
	return err
}

// exists reports whether a key's file is there.
func exists(keys *keystore.Store, uri string) bool {
	_, err := os.Stat(keys.Path(uri))
	return err == nil
}
