package interop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/status"
	"golang.org/x/crypto/ocsp"
)

// doorSample is how many devices of a round ask at the doors, which is slow.
const doorSample = 10

// checkStatus wants every answered revocation, and nothing else, on the list.
func checkStatus(t *testing.T, s *site, holders []*holder) {
	t.Helper()
	ca, err := s.admin.Authority(t.Context(), "issuing")
	if err != nil {
		t.Fatal(err)
	}
	issuer := parsePEM(t, ca.PEM)
	client := &status.Client{HTTP: &http.Client{Timeout: patience}, Now: time.Now}
	var wrong []string
	shown := eventually(func() bool { // a list after a crash may take a moment
		list, err := client.CRL(t.Context(), s.ends.Status+"/crl/issuing/0.crl", issuer)
		if err != nil {
			wrong = []string{err.Error()}
			return false
		}
		wrong = misses(list, holders)
		return len(wrong) == 0
	})
	if !shown {
		t.Errorf("the list does not show the record of: %v", wrong)
	}
	asked := 0
	for _, h := range holders {
		if len(h.certs) == 0 || asked == doorSample {
			continue
		}
		asked++
		last := h.certs[len(h.certs)-1]
		answer, err := client.OCSP(t.Context(), s.ends.Status+"/ocsp", last, issuer)
		want := ocsp.Good
		if h.revoked {
			want = ocsp.Revoked
		}
		if err != nil || answer.Status != want {
			t.Errorf("OCSP for %s: got %+v, %v, want status %d", h.id, answer, err, want)
		}
	}
}

// misses names the devices that the list is wrong about.
func misses(list *x509.RevocationList, holders []*holder) (wrong []string) {
	listed := map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		listed[e.SerialNumber.String()] = true
	}
	for _, h := range holders {
		for _, cert := range h.certs {
			if listed[cert.SerialNumber.String()] != h.revoked {
				wrong = append(wrong, h.id)
			}
		}
	}
	return wrong
}

// checkDoor wants the revoked refused and the others let in. It changes what
// their certificates are: they have been used then.
func checkDoor(t *testing.T, s *site, holders []*holder) {
	t.Helper()
	asked := map[bool]int{}
	for _, h := range holders {
		if len(h.certs) == 0 || asked[h.revoked] == doorSample {
			continue
		}
		asked[h.revoked]++
		want := byte(0)
		if h.revoked {
			want = 5 // not authorized, MQTT 3.1.1, 3.2.2.3
		}
		if got, err := connectMQTT(t.Context(), s, h); err != nil || got != want {
			t.Errorf("%s connects: got return code %d, %v, want %d", h.id, got, err, want)
		}
		h.used = h.used || want == 0
	}
}

// connectMQTT connects over MQTT 3.1.1 with a clean session, leaves, and gives the
// return code.
func connectMQTT(ctx context.Context, s *site, h *holder) (code byte, err error) {
	conn, code, err := openMQTT(ctx, s, h)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	_, err = conn.Write([]byte{0xE0, 0}) // DISCONNECT
	return code, err
}

// openMQTT connects as connectMQTT does, and stays.
func openMQTT(ctx context.Context, s *site, h *holder) (conn net.Conn, code byte, err error) {
	u, err := url.Parse(s.ends.MQTT)
	if err != nil {
		return nil, 0, err
	}
	config := h.identity.TLSConfig()
	config.RootCAs = s.roots
	if conn, err = (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", u.Host); err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	_ = conn.SetDeadline(time.Now().Add(patience))
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60}, binary.BigEndian.AppendUint16(nil, uint16(len(h.id)))...)
	body = append(body, h.id...)
	if _, err := conn.Write(append([]byte{0x10, byte(len(body))}, body...)); err != nil {
		return nil, 0, err
	}
	var connack [4]byte
	if _, err := io.ReadFull(conn, connack[:]); err != nil {
		return nil, 0, fmt.Errorf("read CONNACK: %w", err)
	}
	return conn, connack[3], nil
}
