//go:build linux

package server

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/countersign-iot/countersign/rest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestSocketIsForItsOwnerFirst holds the mode with which the socket is made, and the one
// that it gets.
func TestSocketIsForItsOwnerFirst(t *testing.T) {
	mode := func(path string) fs.FileMode { return kit.Must(os.Stat(path)).Mode().Perm() }
	first := filepath.Join(t.TempDir(), "s")
	lc := net.ListenConfig{Control: ownerOnly}
	l := kit.Must(lc.Listen(t.Context(), "unix", first))
	defer func() { _ = l.Close() }()
	if got := mode(first); got != 0o600 {
		t.Errorf("mode with which the socket is made: got %v, want 0600", got)
	}
	path := filepath.Join(t.TempDir(), "s")
	l = kit.Must(listenSocket(path))
	defer func() { _ = l.Close() }()
	if got := mode(path); got != socketMode {
		t.Errorf("mode of the socket: got %v, want %v", got, fs.FileMode(socketMode))
	}
}

// TestSocketChangesNoOtherFile makes folders while sockets are opened.
func TestSocketChangesNoOtherFile(t *testing.T) {
	stop := make(chan struct{})
	var opening sync.WaitGroup
	dir := t.TempDir()
	opening.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			l, err := listenSocket(filepath.Join(dir, strconv.Itoa(i)))
			if err != nil {
				t.Error(err)
				return
			}
			_ = l.Close()
		}
	})
	for i := range 2000 {
		path := filepath.Join(dir, "folder"+strconv.Itoa(i))
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Error(err)
		}
		if got := kit.Must(os.Stat(path)).Mode().Perm(); got != 0o700 {
			t.Errorf("mode of a folder that was made meanwhile: got %v, want 0700", got)
			break
		}
	}
	close(stop)
	opening.Wait()
}

// TestSocketNamesItsUser asks over the socket who the server takes the client for.
func TestSocketNamesItsUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, rest.LocalName(r.RemoteAddr))
	})}
	go func() { _ = s.Serve(peerNamed(l)) }()
	t.Cleanup(func() { _ = s.Close() })
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	resp, err := c.Get("http://socket/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if want := "local:" + me.Username; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := nameOf(4_000_000_000); got != "4000000000" {
		t.Errorf("a user that is not on record: got %q, want the number", got)
	}
}
