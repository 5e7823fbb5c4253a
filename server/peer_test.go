//go:build linux

package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/user"
	"path/filepath"
	"testing"

	"github.com/countersign-iot/countersign/rest"
)

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
