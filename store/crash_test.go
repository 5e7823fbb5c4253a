package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// crashURL makes this test binary the writer that is killed.
const crashURL = "COUNTERSIGN_STORE_CRASH_URL"

func TestMain(m *testing.M) {
	if url := os.Getenv(crashURL); url != "" {
		fmt.Fprintln(os.Stderr, writeForever(url))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeForever inserts rows from many goroutines and prints each one's number once
// Write has returned. It ends by being killed.
func writeForever(url string) error {
	const writers = 16
	ctx := context.Background()
	db, err := store.Open(ctx, store.Options{URL: url, Now: time.Now})
	if err != nil {
		return err
	}
	if err := tryRun(ctx, db, `CREATE TABLE counter (name TEXT PRIMARY KEY, n BIGINT NOT NULL)`); err != nil {
		return err
	}
	failed := make(chan error, writers)
	var mu sync.Mutex // of standard output
	for w := range writers {
		go func() {
			for i := w; ; i += writers {
				err := tryRun(ctx, db, insert, strconv.Itoa(i), i)
				mu.Lock()
				_, printErr := fmt.Fprintln(os.Stdout, i)
				mu.Unlock()
				if err := errors.Join(err, printErr); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

func TestKilledWriterLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	const enough = 300 // acknowledged writes before the kill
	eachURL(t, func(t *testing.T, url string) {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), crashURL+"="+url)
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acknowledged []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			acknowledged = append(acknowledged, lines.Text())
			if len(acknowledged) == enough {
				if err := cmd.Process.Kill(); err != nil { // SIGKILL
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // "killed"
		if len(acknowledged) < enough {
			t.Fatalf("the writer ended by itself after %d rows", len(acknowledged))
		}
		kept := map[string]bool{}
		for _, name := range names(t, storetest.OpenURL(t, url)) {
			kept[name] = true
		}
		for _, name := range acknowledged {
			if !kept[name] {
				t.Errorf("row %s was acknowledged and is gone", name)
			}
		}
	})
}
