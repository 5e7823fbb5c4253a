package server_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/countersigntest"
)

// TestStatusListenerIsSharedByAddresses: one address that holds as many connections
// as it can leaves room for the others, who get their answer.
func TestStatusListenerIsSharedByAddresses(t *testing.T) {
	const tries, most = 600, 128
	s := countersigntest.Start(t)
	u, err := url.Parse(s.Endpoints().Status)
	if err != nil {
		t.Fatal(err)
	}
	from := func(last byte) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 0, last)}, Timeout: 10 * time.Second}
		c, err := d.Dial("tcp", u.Host)
		if err != nil {
			return nil
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	var conns []net.Conn
	for range tries {
		if c := from(1); c != nil { // else it was reset at once
			conns = append(conns, c)
		}
	}
	answered := 0
	for _, c := range conns {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "GET /ca/issuing.cer HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			continue
		}
		if res, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil && res.StatusCode == http.StatusOK {
			answered++
		}
	}
	if answered > most || answered < most/2 {
		t.Errorf("%d of %d connections of one address were served, want %d at most", answered, tries, most)
	}
	c := from(2)
	if c == nil {
		t.Fatal("another address is turned away")
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET /ca/issuing.cer HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("another address meanwhile: got %v, %v", res, err)
	}
}
