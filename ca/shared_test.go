package ca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/status"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// large puts a list of so many octets on record, as the one with the number.
func (h *house) large(t *testing.T, number, size int) []byte {
	t.Helper()
	der := bytes.Repeat([]byte{byte(number)}, size)
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE crl SET number = $1, published = $1, this_update = $2, next_update = $3, entries = 1, size = $5, head = $4, tail = NULL, chunks = NULL WHERE issuer = 'issuing'`,
			number, store.Micros(start), store.Micros(start.Add(time.Hour)), der, len(der))
		return err
	})
	return der
}

// slow asks for the list and reads the header of the answer and no more.
func slow(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.(*net.TCPConn).SetReadBuffer(4096)
	if _, err := io.WriteString(c, "GET /crl/issuing/0.crl HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSlowDownloadsShareOneList: each of many clients that hardly read holds a
// connection, and all together one copy of the list.
func TestSlowDownloadsShareOneList(t *testing.T) {
	const size, clients = 24 << 20, 24
	h := found(t, storetest.Open(t))
	want := h.large(t, 7, size)
	door := httptest.NewServer(&status.Server{Authority: h.CA, Now: h.clock.Now})
	t.Cleanup(door.Close)
	before := heap()
	for range clients {
		slow(t, door.Listener.Addr().String())
	}
	if grown := heap() - before; grown > size*3/2 {
		t.Errorf("%d slow downloads of a list of %d MiB took %d MiB", clients, size>>20, grown>>20)
	}
	get := func(method, tag string) (*http.Response, []byte) {
		r, err := http.NewRequestWithContext(t.Context(), method, door.URL+"/crl/issuing/0.crl", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("If-None-Match", tag)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, body
	}
	res, body := get(http.MethodGet, "")
	if !bytes.Equal(body, want) {
		t.Errorf("got %d octets, want the list of %d", len(body), len(want))
	}
	tag := res.Header.Get("ETag")
	var start, end runtime.MemStats
	runtime.ReadMemStats(&start)
	for range 50 {
		if res, body := get(http.MethodGet, tag); res.StatusCode != http.StatusNotModified || len(body) > 0 {
			t.Fatalf("conditional GET: got %d with %d octets", res.StatusCode, len(body))
		}
		if res, _ := get(http.MethodHead, ""); res.StatusCode != http.StatusOK || res.ContentLength != size {
			t.Fatalf("HEAD: got %d, Content-Length %d", res.StatusCode, res.ContentLength)
		}
	}
	if runtime.ReadMemStats(&end); end.TotalAlloc-start.TotalAlloc > size {
		t.Errorf("50 conditional requests and 50 HEAD allocated %d MiB: the octets of the list were read", (end.TotalAlloc-start.TotalAlloc)>>20)
	}
}

// TestSupersededListsAreBounded: while the list changes, slow clients hold no more
// than a fixed amount of its earlier versions, and the last of them goes on.
func TestSupersededListsAreBounded(t *testing.T) {
	const size, versions = 24 << 20, 6
	h := found(t, storetest.Open(t))
	h.large(t, 1, 16)
	before := heap()
	var readers []io.ReadSeekCloser
	for v := 1; v <= versions; v++ {
		h.large(t, v, size)
		l, r, err := h.OpenCRL(t.Context(), ca.IssuingID, 0)
		if err != nil || l.Number != int64(v) || l.Size != size {
			t.Fatalf("OpenCRL: got %+v, %v, want number %d", l, err, v)
		}
		if _, err := io.ReadFull(r, make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	if grown := heap() - before; grown > (64<<20)+2*size {
		t.Errorf("%d versions of a list of %d MiB took %d MiB", versions, size>>20, grown>>20)
	}
	rest := make([]byte, 1024)
	if _, err := readers[0].Read(rest); countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("the oldest version: got %v, want unavailable", err)
	}
	for v := versions - 1; v <= versions; v++ {
		if _, err := readers[v-1].Read(rest); err != nil || rest[0] != byte(v) {
			t.Errorf("version %d: got %v, %d", v, err, rest[0])
		}
	}
	for _, r := range readers {
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	}
	h.large(t, versions+1, 16)
	if _, r, err := h.OpenCRL(t.Context(), ca.IssuingID, 0); err != nil {
		t.Error(err)
	} else if err := r.Close(); err != nil {
		t.Error(err)
	}
	if left := heap() - before; left > size/2 {
		t.Errorf("%d MiB are still held when all downloads have ended", left>>20)
	}
}

// TestOpenCRLWhileListsArePublished: every reader gets one whole list, never older
// than the one that was current when it asked.
func TestOpenCRLWhileListsArePublished(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		h.publish(t)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if err := h.readsWhole(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for i := range 30 {
			cert := h.issue(t, ca.ProfileDevice, fmt.Sprintf("pump-%d", i))
			h.write(t, func(ctx context.Context, tx *store.Tx) error {
				return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
			})
			h.publish(t)
		}
		close(stop)
		wg.Wait()
	})
}

func (h *house) readsWhole(ctx context.Context) error {
	now, err := h.CRLRecord(ctx, ca.IssuingID, 0)
	if err != nil {
		return err
	}
	l, r, err := h.OpenCRL(ctx, ca.IssuingID, 0)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	der, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || int64(len(der)) != l.Size {
		return fmt.Errorf("got %d octets of %d: %w", len(der), l.Size, err)
	}
	if l.Number < now.Number || list.Number.Int64() != l.Number {
		return fmt.Errorf("got list %d, number %d beside it, %d was current before", list.Number, l.Number, now.Number)
	}
	return nil
}
