package hold

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// version of the file's form.
	version = 1
	// maxFile bounds what is read: maxHolds, dropped, with texts of full length, of which
	// each octet may take six in JSON.
	maxFile = 8 << 20
	// spareSize is the room that is kept for the next file, so that some two hundred
	// holds can be written when the disk is full.
	spareSize = 64 << 10
)

// file keeps the holds on disk. It is replaced as a whole, by a file whose space was
// taken while there was some.
type file struct{ path string }

type content struct {
	Version int    `json:"version"`
	Holds   []Hold `json:"holds"`
}

func (f file) read() ([]Hold, error) {
	in, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the emergency holds: %w", err)
	}
	defer func() { _ = in.Close() }() // it is only read
	text, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the emergency holds: %w", err)
	}
	var c content
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil || len(text) > maxFile || c.Version != version || len(c.Holds) > maxHolds {
		return nil, fmt.Errorf("%s: the emergency holds cannot be read: they keep devices out whose revocation is not on record yet. "+
			"Look at the file; to go on without them, move it away", f.path)
	}
	return c.Holds, nil
}

// prepare takes the space of the next file. Without it the next one is made when it is
// needed, if there is space then.
func (f file) prepare() {
	spare := f.spare()
	if info, err := os.Stat(spare); err == nil && info.Size() == spareSize {
		return
	}
	out, err := os.OpenFile(spare, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // in the data folder
	if err != nil {
		return
	}
	// Written, and not only sized: a hole takes no space.
	_, err = out.Write(bytes.Repeat([]byte{' '}, spareSize))
	if errors.Join(err, out.Sync(), out.Close()) != nil {
		_ = os.Remove(spare)
	}
}

func (f file) spare() string { return f.path + ".spare" }

// write puts the holds in place of those in the file, or leaves it as it was.
func (f file) write(holds []Hold) error {
	if holds == nil {
		holds = []Hold{}
	}
	text, err := json.MarshalIndent(content{version, holds}, "", "  ")
	if err != nil {
		return err
	}
	out, err := os.OpenFile(f.spare(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	// Blanks behind the text are none of JSON's business, and leave the space taken.
	if pad := spareSize - len(text); pad > 0 {
		text = append(text, bytes.Repeat([]byte{' '}, pad)...)
	}
	_, err = out.WriteAt(text, 0)
	if err = errors.Join(err, out.Truncate(int64(len(text))), out.Sync(), out.Close()); err != nil {
		_ = os.Remove(f.spare())
		return err
	}
	if err := os.Rename(f.spare(), f.path); err != nil {
		return err
	}
	f.prepare()
	return syncFolder(filepath.Dir(f.path))
}

// syncFolder makes a rename durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the data folder
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
