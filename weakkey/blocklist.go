package weakkey

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // the format of the lists, which protects nothing
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/countersign-iot/countersign"
)

const (
	// maxBlocked bounds a list. Debian's, of all sizes and machines, has under a million.
	maxBlocked = 4 << 20
	// maxBlockLine is the longest line, a comment.
	maxBlockLine = 1024
)

// Blocklist is a set of RSA moduli that are known to be weak, in the form that
// Debian's openssl-blacklist has used since CVE-2008-0166. The zero value blocks nothing.
type Blocklist struct {
	mu      sync.RWMutex
	blocked map[blockID]struct{}
}

// Replace replaces the keys of b by those of another list, which must not be used afterwards.
func (b *Blocklist) Replace(by *Blocklist) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocked = by.blocked
}

// blockID is the last 10 octets of the SHA-1 of what "openssl rsa -noout -modulus" prints.
type blockID [10]byte

// Read adds the keys of a list: a line of 20 hex digits for each, and
// comments that begin with #. Errors have code BadRequest or TooLarge, or are the reader's.
func (b *Blocklist) Read(r io.Reader) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.blocked == nil {
		b.blocked = map[blockID]struct{}{}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, maxBlockLine), maxBlockLine)
	for number := 1; lines.Scan(); number++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		var id blockID
		if len(line) != hex.EncodedLen(len(id)) {
			return badLine(number)
		}
		if _, err := hex.Decode(id[:], line); err != nil {
			return badLine(number)
		}
		if len(b.blocked) >= maxBlocked {
			return countersign.Errorf(countersign.TooLarge, "the list of weak keys has more than %d", maxBlocked)
		}
		b.blocked[id] = struct{}{}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the list of weak keys: %w", err)
	}
	return nil
}

func badLine(number int) error {
	return countersign.Errorf(countersign.BadRequest, "line %d of the list of weak keys is not 20 hex digits", number).
		WithNext("use the files blacklist.RSA-* of the package openssl-blacklist")
}

// Len returns how many keys the list blocks.
func (b *Blocklist) Len() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.blocked)
}

// Check returns an error if a public key is known to be weak, built in or on the list.
// Every public key that the authority accepts, at any door, is checked with it. A nil
// list has the built-in checks only. Errors have code WeakKey.
func (b *Blocklist) Check(pub crypto.PublicKey) error {
	if err := Check(pub); err != nil {
		return err
	}
	k, isRSA := pub.(*rsa.PublicKey)
	if !isRSA || b == nil {
		return nil
	}
	b.mu.RLock()
	blocked := b.blocked // never written once it is checked against
	b.mu.RUnlock()
	if len(blocked) == 0 {
		return nil
	}
	sum := sha1.Sum(fmt.Appendf(nil, "Modulus=%X\n", k.N)) //nolint:gosec // see above
	if _, found := blocked[blockID(sum[len(sum)-len(blockID{}):])]; found {
		return weak("its RSA modulus is on the list of known weak keys").WithCause(ErrListed)
	}
	return nil
}
