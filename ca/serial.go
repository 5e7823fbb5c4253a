package ca

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"math/big"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// serialOctets of a serial: the time when its block was drawn, in clockOctets, and
	// 96 random bits. With the top bit of the first octet clear and the next one set, a
	// serial is a positive INTEGER of 20 octets (RFC 5280, 4.1.2.2).
	serialOctets = 20
	// clockOctets hold the nanoseconds since 1970 in their lower clockBits, so until
	// 2116. Rows and index entries of serials that are drawn one after the other are
	// then stored side by side, and a new one does not need a page of its own from disk.
	clockOctets = 8
	clockBits   = 62
	// blockSize is how many serials one commit records: at 3,000 enrollments a
	// second, three small commits a second.
	blockSize = 1024
	// lowWater is when the next block is fetched, so that no caller waits for it.
	lowWater = blockSize / 4
	// blockLife bounds how long a block stays open, by the clock that all nodes share,
	// and with it how long a crash leaves unspent serials unvoided on a node that does
	// not come back.
	blockLife = time.Hour
	// blockMargin is when a node stops drawing from a block, ahead of the others'
	// right to void it; longer than any transaction lives. The node measures it on its
	// own, so that its clock may differ from the others' and be set meanwhile.
	blockMargin = 15 * time.Minute
)

// drawn is a serial from a block on record.
type drawn struct {
	serial *big.Int
	block  string
}

// serials hands out recorded serials. One per process.
type serials struct {
	db  *store.DB
	now func() time.Time

	mu      sync.Mutex
	block   *block
	next    *block               // fetched ahead; nil if none
	filling chan struct{}        // closed when the fetch under way ends; nil if none
	err     error                // of the last fetch
	own     map[string]time.Time // blocks of this process, and since when; those over blockLife are forgotten
}

type block struct {
	id     string
	left   []byte    // unspent serials, concatenated
	opened time.Time // by this process
}

// draw returns the next serial. It waits only when enrollments outrun the fetch.
func (s *serials) draw(ctx context.Context) (drawn, error) {
	for {
		s.mu.Lock()
		now := s.now()
		if s.block.spent(now) {
			s.block, s.next = s.next, nil
		}
		usable := !s.block.spent(now)
		if s.filling == nil && s.next == nil && (!usable || len(s.block.left) < lowWater*serialOctets) {
			s.filling = make(chan struct{})
			go s.fill(context.WithoutCancel(ctx), s.filling)
		}
		if usable {
			n := new(big.Int).SetBytes(s.block.left[:serialOctets])
			s.block.left = s.block.left[serialOctets:]
			id := s.block.id
			s.mu.Unlock()
			return drawn{n, id}, nil
		}
		wait := s.filling
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return drawn{}, ctx.Err()
		}
		s.mu.Lock()
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return drawn{}, err
		}
	}
}

func (b *block) spent(now time.Time) bool {
	return b == nil || len(b.left) == 0 || now.Sub(b.opened).Abs() > blockLife-blockMargin
}

// fill records a new block and only then makes it available.
func (s *serials) fill(ctx context.Context, done chan struct{}) {
	b, err := s.record(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if err == nil {
		s.next = b
		s.keep(b)
	}
	s.filling = nil
	close(done)
}

func (s *serials) record(ctx context.Context) (*block, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("draw serials: %w", err)
	}
	b := &block{id: hex.EncodeToString(id), opened: s.now()} // before the others' time is asked
	shared, err := s.db.Clock(ctx, b.opened)
	if err != nil {
		return nil, fmt.Errorf("record a block of serials: %w", err)
	}
	if b.left, err = serialsAt(shared); err != nil {
		return nil, err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO serial_block (id, serials, state, opened_at, expires_at) VALUES ($1, $2, 'open', $3, $4)`,
			b.id, b.left, store.Micros(shared), store.Micros(shared.Add(blockLife)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("record a block of serials: %w", err)
	}
	return b, nil
}

// serialsAt draws the serials of a block that is opened at a time. Serials of a block are
// in no order, so they do not show how many were drawn between two of them. A clock that
// was set back costs the order of the blocks, not the serials' uniqueness.
func serialsAt(at time.Time) ([]byte, error) {
	all := make([]byte, blockSize*serialOctets)
	if _, err := rand.Read(all); err != nil {
		return nil, fmt.Errorf("draw serials: %w", err)
	}
	clock := uint64(at.UnixNano())&(1<<clockBits-1) | 1<<clockBits // a time before 1970 is some number too
	for i := 0; i < len(all); i += serialOctets {
		binary.BigEndian.PutUint64(all[i:i+clockOctets], clock)
	}
	return all, nil
}

// keep notes that a block is this process's own. s.mu is held.
func (s *serials) keep(b *block) {
	maps.DeleteFunc(s.own, func(_ string, opened time.Time) bool { return b.opened.Sub(opened).Abs() > blockLife })
	if s.own == nil {
		s.own = map[string]time.Time{}
	}
	s.own[b.id] = b.opened
}

// inUse reports whether this process may still be spending a block.
func (s *serials) inUse(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	opened, mine := s.own[id]
	return mine && s.now().Sub(opened).Abs() <= blockLife
}

// forgetBlock forgets a block that another node closed: a clock was wrong, or this process
// was stopped for longer than blockMargin.
func (s *serials) forgetBlock(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.own, id)
	for _, b := range []**block{&s.block, &s.next} {
		if *b != nil && (*b).id == id {
			*b = nil
		}
	}
}

// VoidSerials closes the blocks that no process draws from any more and keeps, of
// each, the serials that no certificate carries. all means that no other process
// shares the database, so that every open block is a dead process's. It returns
// the number of serials voided.
func (s *serials) VoidSerials(ctx context.Context, all bool) (int, error) {
	cutoff := time.Unix(math.MaxInt32, 0)
	if !all {
		var err error
		if cutoff, err = s.db.Clock(ctx, s.now()); err != nil {
			return 0, err
		}
	}
	voided, after := 0, ""
	for {
		blocks, err := s.openBlocks(ctx, cutoff, after)
		if err != nil || len(blocks) == 0 {
			return voided, err
		}
		for _, b := range blocks {
			after = b.id
			if !all && s.inUse(b.id) { // only the clock says that it is over
				continue
			}
			n, err := s.void(ctx, b)
			if err != nil {
				return voided, err
			}
			voided += n
		}
	}
}

// maxBlocks bounds how many blocks are held in memory at once, 20 KB each.
const maxBlocks = 64

func (s *serials) openBlocks(ctx context.Context, cutoff time.Time, after string) (list []block, err error) {
	list, err = store.List(ctx, s.db, func(row store.Row) (b block, err error) {
		err = row.Scan(&b.id, &b.left)
		return b, err
	}, `SELECT id, serials FROM serial_block WHERE state = 'open' AND expires_at < $1 AND id > $2 ORDER BY id LIMIT $3`,
		store.Micros(cutoff), after, maxBlocks)
	if err != nil {
		return nil, fmt.Errorf("list open serial blocks: %w", err)
	}
	return list, nil
}

func (s *serials) void(ctx context.Context, b block) (int, error) {
	unspent := 0
	err := s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		left := []byte{}
		for i := 0; i+serialOctets <= len(b.left); i += serialOctets {
			one := b.left[i : i+serialOctets]
			var n int
			err := tx.QueryRow(ctx, `SELECT count(*) FROM certificate WHERE serial = $1 AND anchor = ''
				AND issuer NOT IN (SELECT id FROM authority WHERE kind = 'registered')`,
				string(countersign.SerialOf(new(big.Int).SetBytes(one)))).Scan(&n)
			if err != nil {
				return err
			}
			if n == 0 {
				left = append(left, one...)
			}
		}
		n, err := tx.Exec(ctx, `UPDATE serial_block SET state = 'void', serials = $2 WHERE id = $1 AND state = 'open'`, b.id, left)
		if err != nil {
			return err
		}
		if unspent = len(left) / serialOctets; n != 1 {
			unspent = 0 // another node was faster, and counted them
		}
		_, err = tx.Exec(ctx, `DELETE FROM serial_block WHERE id = $1 AND length(serials) = 0`, b.id)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("void serials of block %s: %w", b.id, err)
	}
	return unspent, nil
}
