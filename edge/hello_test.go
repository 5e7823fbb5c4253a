package edge_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/test/kit"
)

// chrome is a ClientHello as a browser sends it, with GREASE in each list.
func chrome() *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		CipherSuites: []uint16{
			0x2a2a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
		},
		Extensions: []uint16{
			0xcaca, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015, 0x3a3a,
		},
		SignatureSchemes:  []tls.SignatureScheme{0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601},
		SupportedProtos:   []string{"h2", "http/1.1"},
		SupportedVersions: []uint16{0x7a7a, tls.VersionTLS13, tls.VersionTLS12},
		ServerName:        "example.com",
	}
}

// short is the truncated SHA-256, worked out apart from the code under test.
func short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}

func TestFingerprintHasTheFormOfJA4(t *testing.T) {
	got := edge.Fingerprint(chrome())
	want := "t13d1515h2_" + short("002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9") + "_" +
		short("0005,000a,000b,000d,0012,0017,001b,0023,002b,002d,0033,4469,ff01_0403,0804,0401,0503,0805,0501,0806,0601")
	if got != want {
		t.Errorf("Fingerprint: got %s, want %s", got, want)
	}
	// The cipher part is the one that JA4's own description shows for this browser.
	if !strings.Contains(got, "_8daaf6152771_") {
		t.Errorf("Fingerprint: %s has another cipher part than the published example", got)
	}
}

func TestFingerprintOfNothing(t *testing.T) {
	if got, want := edge.Fingerprint(&tls.ClientHelloInfo{}), "t00i000000_000000000000_000000000000"; got != want {
		t.Errorf("Fingerprint: got %s, want %s", got, want)
	}
	long := &tls.ClientHelloInfo{SupportedProtos: []string{"\xab\xcd"}, SupportedVersions: []uint16{tls.VersionTLS12}}
	for i := range 8000 {
		long.CipherSuites = append(long.CipherSuites, uint16(i))
		long.Extensions = append(long.Extensions, uint16(i))
		long.SignatureSchemes = append(long.SignatureSchemes, tls.SignatureScheme(i))
	}
	if got := edge.Fingerprint(long); !strings.HasPrefix(got, "t12d9999ad_") || len(got) != 36 {
		t.Errorf("Fingerprint of long lists: got %s", got)
	}
}

func TestFingerprintIgnoresOrderGreaseAndResumption(t *testing.T) {
	want := edge.Fingerprint(chrome())
	for name, change := range map[string]func(*tls.ClientHelloInfo){
		"order":      func(h *tls.ClientHelloInfo) { slices.Reverse(h.Extensions); slices.Reverse(h.CipherSuites) },
		"grease":     func(h *tls.ClientHelloInfo) { h.CipherSuites[0], h.Extensions[0] = 0xfafa, 0x0a0a },
		"resumption": func(h *tls.ClientHelloInfo) { h.Extensions = append(h.Extensions, 41, 42, 44) },
		"padding": func(h *tls.ClientHelloInfo) {
			h.Extensions = slices.DeleteFunc(h.Extensions, func(e uint16) bool { return e == 21 })
		},
	} {
		h := chrome()
		change(h)
		if got := edge.Fingerprint(h); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	for name, change := range map[string]func(*tls.ClientHelloInfo){
		"cipher":    func(h *tls.ClientHelloInfo) { h.CipherSuites[1] = 0x1399 },
		"extension": func(h *tls.ClientHelloInfo) { h.Extensions[1] = 0x1234 },
		"scheme":    func(h *tls.ClientHelloInfo) { slices.Reverse(h.SignatureSchemes) },
		"version":   func(h *tls.ClientHelloInfo) { h.SupportedVersions = h.SupportedVersions[2:] },
		"protocol":  func(h *tls.ClientHelloInfo) { h.SupportedProtos = nil },
		"name":      func(h *tls.ClientHelloInfo) { h.Extensions[2] = 0x9999 },
	} {
		h := chrome()
		change(h)
		if edge.Fingerprint(h) == want {
			t.Errorf("another %s has the same fingerprint", name)
		}
	}
}

func TestFingerprintIsCheap(t *testing.T) {
	h := chrome()
	if n := testing.AllocsPerRun(100, func() { edge.Fingerprint(h) }); n > 4 {
		t.Errorf("Fingerprint: %v allocations", n)
	}
}

// hellos runs a gate that sends the fingerprint of each connection to prints. roots is a file
// with its certificate.
func hellos(t *testing.T) (addr string, prints chan string, roots string) {
	t.Helper()
	prints = make(chan string, 16)
	g, addr := open(t, edge.Limits{}, func(ctx context.Context, c *edge.Conn) {
		prints <- c.Hello
		hold(ctx, c)
	})
	cert, err := g.TLS.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	roots = filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	return addr, prints, roots
}

func next(t *testing.T, prints chan string) string {
	t.Helper()
	select {
	case h := <-prints:
		return h
	case <-time.After(20 * time.Second):
		t.Fatal("no connection came through")
		return ""
	}
}

func TestHelloTellsClientProgramsApart(t *testing.T) {
	addr, prints, roots := hellos(t)
	seen := map[string]string{}
	for name, connect := range map[string]func(*testing.T){
		"go": func(t *testing.T) {
			cert := certificate(t, "device") // a renewed certificate greets alike
			c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
		},
		"openssl": func(t *testing.T) {
			peer(t, "openssl", "s_client", "-connect", addr)
		},
		"openssl with TLS 1.2": func(t *testing.T) {
			peer(t, "openssl", "s_client", "-tls1_2", "-connect", addr)
		},
		"mosquitto": func(t *testing.T) {
			_, port, _ := net.SplitHostPort(addr)
			peer(t, "mosquitto_pub", "--insecure", "--cafile", roots, "--tls-alpn", "mqtt", "-h", "localhost", "-p", port, "-t", "a", "-m", "b")
		},
	} {
		t.Run(name, func(t *testing.T) {
			connect(t)
			first := next(t, prints)
			connect(t)
			if again := next(t, prints); again != first || len(first) != 36 {
				t.Errorf("Hello: got %q, then %q", first, again)
			}
			if other := seen[first]; other != "" {
				t.Errorf("Hello: %q is the same as of %s", first, other)
			}
			seen[first] = name
			t.Log(first)
		})
	}
}

// peer starts a foreign TLS client and leaves it alone until the test ends.
func peer(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kit.Program(t, program), args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s printed: %s", program, out.String())
		}
	})
}

func TestHelloSurvivesResumption(t *testing.T) {
	server := certificate(t, "server")
	config := edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &server, nil })
	config.SessionTicketsDisabled = false // another listener might; ours does not
	prints := make(chan string, 2)
	resumed := make(chan bool, 2)
	g := &edge.Gate{TLS: config, Log: slog.New(slog.DiscardHandler), Now: time.Now, Handle: serves(func(_ context.Context, c *edge.Conn) {
		prints <- c.Hello
		resumed <- c.ConnectionState().DidResume
		_, _ = io.WriteString(c, "x") // carries the ticket
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(t.Context(), ln) }()
	client := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1), MinVersion: tls.VersionTLS12}
	var got [2]string
	for i := range got {
		c, err := tls.Dial("tcp", ln.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(c)
		_ = c.Close()
		got[i] = next(t, prints)
	}
	if <-resumed || !<-resumed {
		t.Fatal("the second connection did not resume the first")
	}
	if got[0] != got[1] {
		t.Errorf("Hello: got %s, resumed %s", got[0], got[1])
	}
}

func FuzzFingerprint(f *testing.F) {
	f.Add([]byte{0x13, 1, 0xc0, 0x2b}, []byte{0, 0, 0, 16}, []byte{4, 3}, []byte{3, 4}, "h2")
	f.Add([]byte{0x0a, 0x0a}, []byte{}, []byte{}, []byte{}, "\xff")
	form := regexp.MustCompile(`^t(00|1[0-3])[di]\d{4}[0-9A-Za-z]{2}_[0-9a-f]{12}_[0-9a-f]{12}$`)
	f.Fuzz(func(t *testing.T, ciphers, extensions, schemes, versions []byte, protocol string) {
		h := &tls.ClientHelloInfo{
			CipherSuites: pairs(ciphers), Extensions: pairs(extensions), SupportedVersions: pairs(versions), SupportedProtos: []string{protocol},
		}
		for _, s := range pairs(schemes) {
			h.SignatureSchemes = append(h.SignatureSchemes, tls.SignatureScheme(s))
		}
		got := edge.Fingerprint(h)
		if !form.MatchString(got) {
			t.Errorf("Fingerprint: got %q", got)
		}
		slices.Reverse(h.Extensions)
		if again := edge.Fingerprint(h); again != got && len(extensions) < 400 {
			t.Errorf("Fingerprint: got %q, and %q in another order", got, again)
		}
	})
}

func pairs(b []byte) (out []uint16) {
	for ; len(b) >= 2; b = b[2:] {
		out = append(out, binary.BigEndian.Uint16(b))
	}
	return out
}
