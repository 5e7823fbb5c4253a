// Package watermark keeps, beside the keys of a node, the last state of the database
// that the node saw: the end of the event log and the numbers of the CRLs. A database
// that was restored from a backup is older than that. It no longer knows the latest
// revocations and would sign CRLs with numbers that were published before, so it is
// recognized at the start of a node and never served unnoticed. The file is
// authenticated with a key of the server, and it must not be part of a backup.
package watermark

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/store"
)

const (
	// Name is that of the file in the data folder.
	Name = "watermark.json"
	// Purpose is what its key is derived for; see keystore.Sealer.
	Purpose = "watermark"
	// version of its form. A file of a newer one is refused, not guessed at.
	version = 1
	// maxFile bounds the file: an authority takes some 80 octets of it.
	maxFile = 64 << 10
)

// State is how far a database has come.
type State struct {
	Database string           // hex SHA-256 of the root authority's certificate
	Seq      int64            // of the newest sealed event; 0: none
	Hash     []byte           // of that event
	Lists    map[string]int64 // highest CRL number that was given out, by issuer/shard
	At       time.Time        // when it was seen
}

// Equal reports whether two states are the same but for when they were seen.
func (s State) Equal(o State) bool {
	return s.Database == o.Database && s.Seq == o.Seq && string(s.Hash) == string(o.Hash) && maps.Equal(s.Lists, o.Lists)
}

// ErrForged means that a file does not have the authentication of this server: it was
// changed, or belongs to another sealing key.
var ErrForged = errors.New("it is not as this server wrote it")

// file is the form on disk.
type file struct {
	Version  int              `json:"version"`
	Database string           `json:"database"`
	Seq      int64            `json:"seq"`
	Hash     string           `json:"hash"`
	Lists    map[string]int64 `json:"crls"`
	At       time.Time        `json:"at"`
	MAC      string           `json:"mac"` // hex HMAC-SHA-256 of the object without it
}

func (f file) authenticate(key []byte) (string, error) {
	f.MAC = ""
	b, err := json.Marshal(f) // map keys are sorted
	if err != nil {
		return "", err
	}
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Read reads the watermark in a data folder. It returns os.ErrNotExist where there is
// none and ErrForged where it is not authentic; then the state is what the file says.
func Read(dir string, key []byte) (State, error) {
	f, err := os.Open(filepath.Join(dir, Name)) //nolint:gosec // the server's own folder
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return State{}, err
	}
	var w file
	if len(b) > maxFile || json.Unmarshal(b, &w) != nil {
		return State{}, ErrForged
	}
	if w.Version != version {
		return State{}, fmt.Errorf("its version is %d, and this program knows version %d", w.Version, version)
	}
	hash, err := hex.DecodeString(w.Hash)
	if err != nil {
		return State{}, ErrForged
	}
	s := State{Database: w.Database, Seq: w.Seq, Hash: hash, Lists: w.Lists, At: w.At}
	mac, err := w.authenticate(key)
	if err != nil {
		return s, err
	}
	if !hmac.Equal([]byte(mac), []byte(w.MAC)) {
		return s, ErrForged
	}
	return s, nil
}

// Write puts the watermark in its place, whole or not at all, readable by its owner
// alone.
func Write(dir string, key []byte, s State) (err error) {
	w := file{Version: version, Database: s.Database, Seq: s.Seq, Hash: hex.EncodeToString(s.Hash), Lists: s.Lists, At: s.At.UTC().Truncate(time.Second)}
	if w.MAC, err = w.authenticate(key); err != nil {
		return err
	}
	b, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, Name)
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // the server's own folder
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return os.Rename(tmp.Name(), path)
}

// Loss is what a database lacks against the last state that a node saw.
type Loss struct {
	Seen, Now State
	Events    int64    // that are missing at the end of the log
	Fork      bool     // the log went on in another way after what the node saw
	Lists     []string // whose numbers are lower
}

// Compare returns what a database lacks against what a node saw; nil if nothing is
// lacking. hashAt is the hash of the event with the sequence of seen; nil if the log no
// longer holds it.
func Compare(seen, now State, hashAt []byte) *Loss {
	l := &Loss{Seen: seen, Now: now, Events: max(0, seen.Seq-now.Seq)}
	l.Fork = l.Events == 0 && len(hashAt) > 0 && len(seen.Hash) > 0 && string(hashAt) != string(seen.Hash)
	for _, list := range slices.Sorted(maps.Keys(seen.Lists)) {
		if now.Lists[list] < seen.Lists[list] {
			l.Lists = append(l.Lists, list)
		}
	}
	if l.Events == 0 && !l.Fork && len(l.Lists) == 0 {
		return nil
	}
	return l
}

// String says what was lost, for people.
func (l *Loss) String() string {
	var parts []string
	if l.Events > 0 {
		parts = append(parts, fmt.Sprintf("the log ends at event %d and was at event %d: %d are missing", l.Now.Seq, l.Seen.Seq, l.Events))
	}
	if l.Fork {
		parts = append(parts, fmt.Sprintf("event %d is not the one that was seen", l.Seen.Seq))
	}
	for _, list := range l.Lists {
		parts = append(parts, fmt.Sprintf("CRL %s is at number %d and was at %d", list, l.Now.Lists[list], l.Seen.Lists[list]))
	}
	return strings.Join(parts, "; ")
}

// Data is the loss as the data of an event.
func (l *Loss) Data() map[string]string {
	d := map[string]string{
		"events": strconv.FormatInt(l.Events, 10), "seq": strconv.FormatInt(l.Now.Seq, 10), "seen_seq": strconv.FormatInt(l.Seen.Seq, 10),
		"seen_hash": hex.EncodeToString(l.Seen.Hash), "seen_at": l.Seen.At.UTC().Format(time.RFC3339),
	}
	for _, list := range l.Lists {
		d["crl "+list] = fmt.Sprintf("%d -> %d", l.Seen.Lists[list], l.Now.Lists[list])
	}
	return d
}

const (
	// keptNodes are the nodes that are remembered however long ago they were seen: those of
	// an installation that was out of use.
	keptNodes = 64
	// nodeMemory is how long others are. A host with a random name, such as a container, is
	// a new node at each start.
	nodeMemory = 30 * 24 * time.Hour
	// maxNodes bounds them all: hosts that start anew each hour for a month.
	maxNodes = 1000
	// announceEvery is how often a node is seen.
	announceEvery = 24 * time.Hour
)

// Node is a node that keeps a watermark of a database.
type Node struct {
	Name string
	Seen time.Time
}

// Due reports whether the node has to be announced again.
func (n Node) Due(now time.Time) bool { return now.Sub(n.Seen).Abs() >= announceEvery }

// Nodes returns the nodes that keep a watermark of this database, those seen last first.
func Nodes(ctx context.Context, r store.Reader) (nodes []Node, err error) {
	nodes, err = store.List(ctx, r, func(row store.Row) (n Node, err error) {
		var seen int64
		err = row.Scan(&n.Name, &seen)
		n.Seen = store.Time(seen)
		return n, err
	}, `SELECT node, since FROM watermark ORDER BY since DESC, node LIMIT $1`, maxNodes)
	if err != nil {
		return nil, fmt.Errorf("list the nodes with a watermark: %w", err)
	}
	return nodes, nil
}

// Announce records that a node keeps a watermark, and forgets nodes that were not seen
// for nodeMemory but for the last keptNodes.
func Announce(ctx context.Context, tx *store.Tx, node string, now time.Time) error {
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO watermark (node, since) VALUES ($1, $2) ON CONFLICT (node) DO UPDATE SET since = excluded.since`, []any{node, store.Micros(now)}},
		{
			`DELETE FROM watermark WHERE since < $1 AND node NOT IN (SELECT node FROM watermark ORDER BY since DESC, node LIMIT $2)`,
			[]any{store.Micros(now.Add(-nodeMemory)), keptNodes},
		},
		{`DELETE FROM watermark WHERE node NOT IN (SELECT node FROM watermark ORDER BY since DESC, node LIMIT $1)`, []any{maxNodes}},
	} {
		if _, err := tx.Exec(ctx, q.sql, q.args...); err != nil {
			return fmt.Errorf("record that a node keeps a watermark: %w", err)
		}
	}
	return nil
}
