package hook_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/hook"
)

// BenchmarkAnswers asks a whole server over one connection, as a broker does.
func BenchmarkAnswers(b *testing.B) {
	secret := filepath.Join(b.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(hookSecret), 0o600); err != nil {
		b.Fatal(err)
	}
	s := countersigntest.Start(b, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.Hook = "127.0.0.1:0"
		c.Hooks = []config.Hook{{Name: "g", Kind: "generic", Secret: config.Secret("file:" + secret)}}
	}})
	id := s.Enroll(b, "pump-1")
	ask := func(b *testing.B, path string, q hook.GenericQuestion) {
		body, err := json.Marshal(q)
		if err != nil {
			b.Fatal(err)
		}
		r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, s.Endpoints().Hook+"/hooks/g/"+path, bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+hookSecret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		var out hook.GenericAnswer
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&out); err != nil || !out.Allow {
			b.Fatalf("%s: got %+v, %v", path, out, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	connect := hook.GenericQuestion{ClientID: "pump-1", Certificate: string(pemCertificate(id.Path()[0]))}
	b.Run("connect", func(b *testing.B) {
		for b.Loop() {
			ask(b, "connect", connect)
		}
	})
	b.Run("publish", func(b *testing.B) {
		ask(b, "connect", connect)
		for b.Loop() {
			ask(b, "publish", hook.GenericQuestion{ClientID: "pump-1", Topic: "devices/pump-1/up/t"})
		}
	})
}
