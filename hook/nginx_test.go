package hook_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/test/kit"
)

const nginxConf = `
daemon off;
master_process off;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  upstream countersign { server %[7]s; keepalive 16; }
  server {
    listen %[2]s ssl;
    ssl_certificate %[3]s;
    ssl_certificate_key %[4]s;
    ssl_client_certificate %[5]s;
    ssl_verify_client optional;
    ssl_verify_depth 3;
    location / {
      auth_request /auth;
      auth_request_set $device $upstream_http_x_device_id;
      auth_request_set $fleet $upstream_http_x_fleet;
      proxy_set_header X-Device-Id $device;
      proxy_set_header X-Fleet $fleet;
      proxy_pass http://%[6]s;
    }
    location = /auth {
      internal;
      proxy_pass http://countersign/hooks/front/auth;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
      proxy_set_header Authorization "Bearer %[8]s";
      proxy_set_header X-Client-Cert $ssl_client_escaped_cert;
      proxy_set_header X-Real-IP $remote_addr;
    }
  }
}
`

func TestNginxAsksAtEachRequest(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "/usr/sbin/nginx")
	const secret = "a-secret-of-nginx-0123456789"
	s := authority(t, config.Hook{Name: "front", Kind: "nginx", Secret: secretFile(t, []byte(secret)), Networks: []string{"127.0.0.1"}})
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s of %s", r.Header.Get("X-Device-Id"), r.Header.Get("X-Fleet"))
	}))
	t.Cleanup(service.Close)
	cert, key, roots := serverPair(t)
	dir, port := t.TempDir(), kit.FreePort(t)
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConf, dir, loopback(port), cert, key, s.Endpoints().Roots, hostOf(t, service.URL), hostOf(t, s.Endpoints().Hook), secret)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := program(t, "/usr/sbin/nginx", "-p", dir, "-c", conf).listens(port, patience); err != nil {
		t.Fatal(err)
	}

	client := func(c *tls.Config) *http.Client {
		tr := &http.Transport{TLSClientConfig: c}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: patience}
	}
	get := func(c *http.Client) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+loopback(port)+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Device-Id", "forged")
		r.Header.Set("X-Client-Cert", "forged")
		resp, err := c.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return resp.StatusCode, string(b)
	}
	d := client(deviceTLS(s.Enroll(t, "cam-1"), roots))
	nobody := client(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots})
	eventually(t, "nginx", func() bool { status, _ := get(nobody); return status != 0 })

	if status, body := get(d); status != http.StatusOK || body != "hello cam-1 of default" {
		t.Errorf("GET with its certificate: got %d %q, want 200 and its name", status, body)
	}
	if status, _ := get(nobody); status != http.StatusUnauthorized {
		t.Errorf("GET without a certificate: got %d, want 401", status)
	}
	began := eventually(t, "revocation", func() bool { revoke(t, s, "cam-1"); return true })
	took := eventually(t, "refusal", func() bool { status, _ := get(d); return status == http.StatusForbidden })
	t.Logf("nginx: first refused request %s after the revocation", (began + took).Round(1e6))
}

func hostOf(t *testing.T, s string) string {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		t.Fatalf("%q is no URL: %v", s, err)
	}
	return u.Host
}
