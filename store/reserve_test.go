package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	// reserveSize of these tests, and smallDisk, which holds it with the database.
	reserveSize = 4 << 20
	smallDisk   = "16m"
	// diskPatience is how long the reserve may take to come back.
	diskPatience = 10 * time.Second
)

// mounted mounts a small file system, or skips the test where it may not.
func mounted(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	kit.SmallDisk(t, dir, smallDisk)
	return dir
}

// fillDisk takes all the space of dir; the file it returns gives it back.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	return path
}

// uses collects what OnReserve was told.
type uses struct {
	mu   sync.Mutex
	told []bool
}

func (u *uses) add(r store.Reserve) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.told = append(u.told, r.InUse)
}

func (u *uses) list() []bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]bool(nil), u.told...)
}

func full(err error) bool {
	e, ok := errors.AsType[*countersign.Error](err)
	return ok && e.Code == countersign.Unavailable
}

// openOn opens a database in dir with a reserve and a table to write to.
func openOn(t *testing.T, dir string, u *uses) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(dir, "c.db"), Now: time.Now, Reserve: reserveSize, OnReserve: u.add})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return db
}

// emergencies writes rows until one is refused, and returns how many were not.
func emergencies(t *testing.T, db *store.DB, from, want int) int {
	t.Helper()
	for i := range want {
		if err := tryRun(store.Emergency(t.Context()), db, insert, "emergency "+strconv.Itoa(from+i), 1); err != nil {
			t.Logf("emergency %d: %v", i, err)
			return i
		}
	}
	return want
}

func TestEmergencyWritesUseTheReserveOfAFullDisk(t *testing.T) {
	t.Parallel()
	const acts = 300
	dir, told := mounted(t), &uses{}
	db := openOn(t, dir, told)
	defer func() { _ = db.Close() }()
	table(t, db)
	if r := db.Reserve(); r.Size != reserveSize || r.Left != reserveSize || r.InUse {
		t.Fatalf("Reserve: got %+v, want it whole", r)
	}
	ballast := fillDisk(t, dir)
	var refused error
	for i := 0; refused == nil && i < 100_000; i++ { // what the log has preallocated goes first
		refused = tryRun(t.Context(), db, insert, "row "+strconv.Itoa(i), 1)
	}
	if !full(refused) {
		t.Fatalf("write on a full disk: got %v, want Unavailable", refused)
	}
	if got := emergencies(t, db, 0, acts); got != acts {
		t.Errorf("emergency writes on a full disk: got %d, want %d", got, acts)
	}
	if err := tryRun(t.Context(), db, insert, "not now", 1); !full(err) {
		t.Errorf("other write while the reserve is in use: got %v, want Unavailable", err)
	}
	if r := db.Reserve(); !r.InUse || r.Left == 0 || r.Left == reserveSize {
		t.Errorf("Reserve: got %+v, want some of it in use", r)
	}
	// A restart on the full disk: it opens, and the reserve goes on to serve.
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openOn(t, dir, told)
	if got := emergencies(t, db, acts, 10); got != 10 {
		t.Errorf("emergency writes after a restart: got %d, want 10", got)
	}
	if err := tryRun(t.Context(), db, insert, "not now", 1); !full(err) {
		t.Errorf("other write after a restart: got %v, want Unavailable", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	back := func() bool { r := db.Reserve(); return r.Left == reserveSize && !r.InUse }
	for end := time.Now().Add(diskPatience); !back() && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	if !back() {
		t.Fatalf("Reserve once there is space: got %+v, want it whole", db.Reserve())
	}
	run(t, db, insert, "at last", 1)
	if l := told.list(); !slices.Equal(l, []bool{true, true, false}) {
		t.Errorf("OnReserve: got %v, want it in use in each life, then back", l)
	}
}

func TestEmergencyWritesMayExceedTheBound(t *testing.T) {
	t.Parallel()
	told := &uses{}
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now, MaxBytes: 1 << 20, Reserve: reserveSize, OnReserve: told.add})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	table(t, db)
	run(t, db, `CREATE TABLE heap (id BIGINT PRIMARY KEY, data BLOB NOT NULL)`)
	for i, err := 0, error(nil); err == nil; i++ {
		err = tryRun(t.Context(), db, `INSERT INTO heap (id, data) VALUES ($1, $2)`, i, make([]byte, 2<<10))
	}
	if got := emergencies(t, db, 0, 500); got != 500 {
		t.Errorf("emergency writes over the bound: got %d, want all", got)
	}
	if err := tryRun(t.Context(), db, `INSERT INTO heap (id, data) VALUES (-1, $1)`, make([]byte, 64<<10)); !full(err) {
		t.Errorf("other write over the bound: got %v, want Unavailable", err)
	}
	if r := db.Reserve(); !r.InUse {
		t.Errorf("Reserve: got %+v, want it in use", r)
	}
	if l := told.list(); len(l) != 1 || !l[0] {
		t.Errorf("OnReserve: got %v, want once, in use", l)
	}
}

// TestEmergencyAmongOthersIsServed holds that an emergency that waits beside other writes
// is served although their common commit finds no space.
func TestEmergencyAmongOthersIsServed(t *testing.T) {
	t.Parallel()
	dir := mounted(t)
	db := openOn(t, dir, &uses{})
	defer func() { _ = db.Close() }()
	table(t, db)
	run(t, db, `CREATE TABLE heap (id BIGINT PRIMARY KEY, data BLOB NOT NULL)`)
	fillDisk(t, dir)
	release := hold(t, db)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			ctx := t.Context()
			if i == 3 {
				ctx = store.Emergency(ctx)
			}
			errs[i] = tryRun(ctx, db, `INSERT INTO heap (id, data) VALUES ($1, $2)`, i, make([]byte, 1<<20-i))
		})
	}
	time.Sleep(100 * time.Millisecond) // let them queue
	release()
	wg.Wait()
	if errs[3] != nil {
		t.Errorf("emergency among others: got %v, want it served", errs[3])
	}
}

func TestADiskTooSmallHasNoReserve(t *testing.T) {
	t.Parallel()
	dir := mounted(t)
	if err := os.WriteFile(filepath.Join(dir, "x"), make([]byte, 13<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	db := openOn(t, dir, &uses{})
	defer func() { _ = db.Close() }()
	table(t, db)
	if r := db.Reserve(); !r.Missing() || r.InUse {
		t.Errorf("Reserve: got %+v, want it missing", r)
	}
	run(t, db, insert, "as ever", 1)
}
