package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// reserveStep is how much is released first; it doubles while a write still finds
	// no space. A revocation needs about 0.2 MiB. What is released at once is open to
	// every other program on the disk.
	reserveStep = 1 << 20
	// reserveStart is what a start needs: the log's index, endpoints, a page or two.
	reserveStart = 2 << 20
	// reserveEvery is how often the free space is looked at while some of the reserve
	// is used.
	reserveEvery = 2 * time.Second
	// reserveBlock is the piece in which the reserve is written.
	reserveBlock = 256 << 10
	// reserveName is what the file of the reserve has behind the name of the database.
	reserveName = ".reserve"
)

type emergencyKey struct{}

// Emergency returns a context whose Writes may use the reserve of the database: the
// acts that take something away from a device, and what the server needs to serve at
// all. On PostgreSQL, which has no reserve, it changes nothing.
func Emergency(ctx context.Context) context.Context {
	return context.WithValue(ctx, emergencyKey{}, true)
}

func isEmergency(ctx context.Context) bool { return ctx.Value(emergencyKey{}) != nil }

// errReserved is the cause of a refusal while the reserve is in use.
var errReserved = errors.New("only the reserve is left, which is for revocations")

// reserve is a file beside the database that holds nothing but space. It releases
// its space in steps, by getting shorter, and takes it back when the disk has some.
type reserve struct {
	opts Options
	path string
	size int64
	quit chan struct{}
	done chan struct{}

	changing sync.Mutex // held while the file changes, which may take a second

	mu    sync.Mutex
	file  *os.File // nil: it could not be made yet
	left  int64
	over  int64 // octets by which the database exceeds Options.MaxBytes
	inUse bool  // as it was reported last
}

// openReserve opens or makes the reserve of the database at path. A disk that has too
// little space for it has none: that is logged, and tried again later. On a full disk
// it releases what a start needs.
func openReserve(o Options, path string) *reserve {
	r := &reserve{opts: o, path: path + reserveName, size: o.Reserve, quit: make(chan struct{}), done: make(chan struct{})}
	if f, err := os.OpenFile(r.path, os.O_RDWR, 0o600); err == nil {
		if info, err := f.Stat(); err == nil {
			r.file, r.left = f, info.Size()
		}
	}
	if r.left > r.size {
		_ = r.file.Truncate(r.size) // as its state shows when it fails
		r.left = r.size
	}
	if free, err := freeSpace(r.path); err == nil && free < reserveStart {
		r.release(reserveStart)
	}
	if err := r.refill(); err != nil && r.file == nil {
		o.Log.Warn("no space for the reserve of the database: revocations will fail on a full disk", "error", err)
	}
	go r.run()
	return r
}

func (r *reserve) close() error {
	close(r.quit)
	<-r.done
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// run takes the space back when there is some.
func (r *reserve) run() {
	defer close(r.done)
	tick := time.NewTicker(reserveEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.quit:
			return
		case <-tick.C:
			_ = r.refill() // logged at the start, and shown by its state since
			r.report()
		}
	}
}

func (r *reserve) state() Reserve {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Reserve{Size: r.size, Left: r.left, InUse: r.used() || r.over > 0}
}

// used reports whether some of the file was released. The caller holds mu.
func (r *reserve) used() bool { return r.file != nil && r.left < r.size }

// closed reports whether writes that are no emergency have to wait. A database over
// its own bound refuses them by itself.
func (r *reserve) closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used()
}

// release frees a part and reports whether there was any left.
func (r *reserve) release(part int64) bool {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.left == 0 {
		return false
	}
	left := max(0, r.left-part)
	if err := r.file.Truncate(left); err != nil {
		r.opts.Log.Error("reserve of the database not released", "error", err)
		return false
	}
	r.left = left
	r.opts.Log.Warn("disk full: the reserve of the database is in use", "left", left)
	return true
}

// refill makes the reserve whole when the disk has space for it and for half as much
// again. It returns why it is not whole.
func (r *reserve) refill() error {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	left, file := r.left, r.file
	r.mu.Unlock()
	if file != nil && left == r.size {
		return nil
	}
	free, err := freeSpace(r.path)
	if err != nil {
		return err
	}
	if need := r.size - left + r.size/2; free < need {
		return fmt.Errorf("the disk has %d MiB free, and %d MiB are needed", free>>20, need>>20)
	}
	if file == nil {
		if file, err = os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return err
		}
	}
	// Other writes stay out until it is whole: left counts only what is on the disk.
	if err := fill(file, left, r.size); err != nil {
		return errors.Join(err, file.Truncate(left))
	}
	r.mu.Lock()
	r.file, r.left = file, r.size
	r.mu.Unlock()
	return nil
}

// fill writes octets that no file system can compress away, and waits until they are
// on the disk.
func fill(f *os.File, from, to int64) error {
	var seed [32]byte
	noise := rand.NewChaCha8(seed)
	block := make([]byte, reserveBlock)
	for from < to {
		_, _ = noise.Read(block) // never fails
		n, err := f.WriteAt(block[:min(int64(len(block)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return f.Sync()
}

// exceeds notes by how much the database exceeds its bound.
func (r *reserve) exceeds(octets int64) {
	r.mu.Lock()
	r.over = max(0, octets)
	r.mu.Unlock()
	r.report()
}

// report calls Options.OnReserve when the use of the reserve began or ended.
func (r *reserve) report() {
	s := r.state()
	r.mu.Lock()
	changed := r.inUse != s.InUse
	r.inUse = s.InUse
	r.mu.Unlock()
	if changed && r.opts.OnReserve != nil {
		r.opts.OnReserve(s)
	}
}

// freeSpace returns the octets that this user may still write on the disk of a path.
func freeSpace(path string) (int64, error) {
	var st syscall.Statfs_t
	err := syscall.Statfs(path, &st)
	if errors.Is(err, os.ErrNotExist) {
		err = syscall.Statfs(filepath.Dir(path), &st)
	}
	if err != nil {
		return 0, fmt.Errorf("read the free space: %w", err)
	}
	return int64(st.Bavail * uint64(st.Bsize)), nil //nolint:gosec // no disk has 2^63 octets, and a block size is positive
}
