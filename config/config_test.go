package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

func TestZeroConfigWorks(t *testing.T) {
	if p := (Config{}).Check(); len(p) != 0 {
		t.Errorf("Check of the zero Config: got %v, want none", p)
	}
	c := Config{}.WithDefaults()
	if diff := cmp.Diff(c, c.WithDefaults()); diff != "" {
		t.Errorf("WithDefaults twice differs from once:\n%s", diff)
	}
}

func TestParseReadsEveryField(t *testing.T) {
	got, err := Parse([]byte(`
dir: /var/lib/countersign
database: postgres://cs@db/countersign
storage_limit: 5GiB
reserve: 32MiB
listeners: {enroll: ":443", mqtt: ":8883", api: "127.0.0.1:8080", status: off}
names: [id.example.org, 192.0.2.7]
status_url: http://id.example.org
root_passphrase: file:/etc/countersign/root
engine:
  kind: broker
  addr: broker:1883
  tls: true
  roots: /etc/roots.pem
  server_name: broker.example.org
  certificate: /etc/cert.pem
  key: /etc/key.pem
  storage_limit: 2GiB
  session_expiry: 24h
  queue_messages: 50
  queue_size: 1MiB
  node: one
limits: {max_connections: 10, per_address: 5, handshakes: 4, connect_timeout: 3s, allow_networks: [192.0.2.0/24, "2001:db8::/32"], packet: 65536}
overlap: 36h
crl_validity: 12h
log: {level: debug, format: json}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Dir:            "/var/lib/countersign",
		Database:       "postgres://cs@db/countersign",
		StorageLimit:   5 << 30,
		Reserve:        32 << 20,
		Listeners:      Listeners{Enroll: ":443", MQTT: ":8883", API: "127.0.0.1:8080", Status: Off},
		Names:          []string{"id.example.org", "192.0.2.7"},
		StatusURL:      "http://id.example.org",
		RootPassphrase: "file:/etc/countersign/root",
		Engine: Engine{
			Kind: EngineBroker, Addr: "broker:1883", TLS: true, Roots: "/etc/roots.pem", ServerName: "broker.example.org",
			Certificate: "/etc/cert.pem", Key: "/etc/key.pem", StorageLimit: 2 << 30,
			SessionExpiry: 24 * time.Hour, QueueMessages: 50, QueueSize: 1 << 20, Node: "one",
		},
		Limits: Limits{
			MaxConnections: 10, PerAddress: 5, Handshakes: 4, ConnectTimeout: 3 * time.Second, Packet: 65536,
			AllowNetworks: []string{"192.0.2.0/24", "2001:db8::/32"},
		},
		Overlap: 36 * time.Hour, CRLValidity: 12 * time.Hour,
		Log: Log{Level: "debug", Format: "json"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func TestParseReadsDaysAndWeeks(t *testing.T) {
	c, err := Parse([]byte("overlap: 7d\ncrl_validity: \"1d12h\"\naudit: {every: 1w}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Overlap != 7*24*time.Hour || c.CRLValidity != 36*time.Hour || c.Audit.Every != 7*24*time.Hour {
		t.Errorf("Parse: got %v, %v, %v, want 168h, 36h, 168h", c.Overlap, c.CRLValidity, c.Audit.Every)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"unknown field":        "dirr: /x",
		"unknown nested field": "listeners: {htpp: ':80'}",
		"repeated field":       "dir: a\ndir: b",
		"wrong type":           "names: {a: b}",
		"bare number as time":  "overlap: 5",
		"negative size":        "engine: {storage_limit: -1}",
		"unknown unit":         "engine: {storage_limit: 5GB}",
		"too large a number":   "engine: {storage_limit: 99999999999GiB}",
		"two documents":        "dir: a\n---\ndir: b",
		"not YAML":             "\t{[",
		"too long":             "# " + strings.Repeat("x", maxFile),
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := Parse([]byte(in)); err == nil {
				t.Errorf("Parse: got %+v, want an error", c)
			}
		})
	}
}

func TestParseNamesFieldLineAndValue(t *testing.T) {
	for in, want := range map[string]string{
		"dir: x\noverlap: 24":                            "line 2: overlap: 24: write a unit, such as 24h",
		"engine:\n  storage_limit: 5GB":                  "line 2: engine.storage_limit: 5GB: write a number of bytes, or one with KiB",
		"limits: {max_connections: many}":                "line 1: limits.max_connections: many: write a whole number",
		"tunnels:\n- name: a\n  plain: 7":                "line 3: tunnels[0].plain: 7: write true or false",
		"names: a.example":                               "line 1: names: a single value is where a list",
		"listeners:\n  mqtt: ':1'\n  mqqt: ':2'":         "line 3: listeners.mqqt: there is no such setting",
		"overlap: 1\ncrl_validity: 2\naudit: {every: x}": "line 3: audit.every: x: write a number with a unit",
	} {
		if _, err := Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): got %v, want %q", in, err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("\noverlap: 24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), path+":2: overlap: 24: write a unit") {
		t.Errorf("Load: got %v, want file and line", err)
	}
}

func TestParseErrorShowsNoFileText(t *testing.T) {
	for _, in := range []string{
		"root_passphrase: hunter2\nnonsense: 1",
		"root_passphrase: {hunter2: 1}",
		"root_passphrase: hunter2: x",
	} {
		_, err := Parse([]byte(in))
		if err == nil {
			t.Fatalf("Parse(%q): got no error", in)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Parse(%q): the error shows the passphrase: %v", in, err)
		}
	}
}

func TestCheckFindsEveryProblem(t *testing.T) {
	c := Config{
		Database:       "postgres://u:pw@h/db",
		StorageLimit:   1,
		Reserve:        1,
		Listeners:      Listeners{Enroll: "8443", MQTT: ":99999", API: ":1", Status: ":1"},
		Names:          []string{"ok.example", "not ok"},
		StatusURL:      "https://x",
		RootPassphrase: "hunter2",
		Engine:         Engine{Kind: "broker", Addr: "nope", Certificate: "/does/not/exist"},
		Limits: Limits{
			MaxConnections: -1, PerAddress: -1, Handshakes: -1, ConnectTimeout: time.Hour, Packet: 1,
			AllowNetworks: []string{"10.0.0.0/8", "::/0", "fe80::1%eth0"},
		},
		Overlap:     -1,
		CRLValidity: time.Second,
		Audit:       Audit{Every: time.Minute},
		Log:         Log{Level: "loud", Format: "xml"},
	}
	var got []string
	for _, p := range c.Check() {
		got = append(got, p.Field)
		if strings.Contains(p.Message, "hunter2") || strings.Contains(p.Message, "pw") {
			t.Errorf("%s: the message shows a secret: %s", p.Field, p.Message)
		}
	}
	want := []string{
		"database", "storage_limit", "reserve", "listeners.enroll", "listeners.mqtt", "listeners.status", "names[1]", "status_url", "root_passphrase",
		"engine.addr", "engine.key", "engine.certificate", "engine.certificate",
		"limits.max_connections", "limits.per_address", "limits.handshakes", "limits.allow_networks[1]", "limits.allow_networks[2]", "limits.connect_timeout", "limits.packet",
		"overlap", "crl_validity", "audit.every", "log.level", "log.format",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields with problems (-want +got):\n%s", diff)
	}
}

// TestCheckOfTheBuiltinEngine holds the bounds of its settings, and that the engine before
// it is refused with what to write.
func TestCheckOfTheBuiltinEngine(t *testing.T) {
	for field, e := range map[string]Engine{
		"engine.kind":           {Kind: "nats"},
		"engine.addr":           {Addr: "broker:1883"},
		"engine.session_expiry": {SessionExpiry: time.Second},
		"engine.queue_messages": {QueueMessages: -1},
		"engine.node":           {Node: "a b"},
		"":                      {SessionExpiry: time.Hour, QueueMessages: 1, QueueSize: 1, Node: "one"},
	} {
		problems := Config{Engine: e}.WithDefaults().Check()
		var got []string
		for _, p := range problems {
			got = append(got, p.Field)
			if p.Field == "engine.kind" && !strings.Contains(p.Message, "write builtin") {
				t.Errorf("engine.kind nats: the message does not say what to write: %s", p.Message)
			}
		}
		if want := strings.Fields(field); !slices.Equal(got, want) {
			t.Errorf("%+v: got problems %q, want %q", e, got, want)
		}
	}
}

func TestSecretResolves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("from file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("COUNTERSIGN_TEST_SECRET", "from env")
	for ref, want := range map[Secret]string{
		"":                            "",
		Secret("file:" + path):        "from file",
		"env:COUNTERSIGN_TEST_SECRET": "from env",
	} {
		if got, err := ref.Resolve(); got != want || err != nil {
			t.Errorf("Resolve(%s): got %q, %v, want %q", ref, got, err, want)
		}
	}
	for _, ref := range []Secret{"plain", "env:", "file:", "env:COUNTERSIGN_NOT_SET", Secret("file:" + path + "x"), "file:/dev/null", "file:/dev/zero"} {
		if v, err := ref.Resolve(); err == nil {
			t.Errorf("Resolve(%s): got %d bytes, want an error", ref, len(v))
		}
	}
}

func TestSecretNeverPrintsItself(t *testing.T) {
	c := Config{RootPassphrase: "hunter2", Database: "postgres://u:hunter2@h/d?password=hunter2"}
	y, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%q", c.RootPassphrase), fmt.Sprintf("%x", c.RootPassphrase),
		c.RootPassphrase.LogValue().String(), c.Database.LogValue().String(), string(y),
	} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("a secret shows: %s", s)
		}
	}
	if got, want := Secret("file:/x").String(), "file:/x"; got != want {
		t.Errorf("String of a reference: got %q, want %q", got, want)
	}
}

func TestDevStaysOnLoopback(t *testing.T) {
	for _, free := range []bool{false, true} {
		c := Dev("d", free)
		if p := c.Check(); len(p) != 0 {
			t.Errorf("Check: got %v, want none", p)
		}
		if !c.Listeners.PlainAPI() {
			t.Error("PlainAPI: got false, want true")
		}
		for _, a := range []string{c.Listeners.Enroll, c.Listeners.MQTT, c.Listeners.API, c.Listeners.Status} {
			if !strings.HasPrefix(a, "127.0.0.1:") || strings.HasSuffix(a, ":0") != free {
				t.Errorf("Dev(free ports %v): got listener %s", free, a)
			}
		}
		if got := c.StatusURL != ""; got == free {
			t.Errorf("Dev(free ports %v): got status URL %q", free, c.StatusURL)
		}
	}
}

func TestOverlayPrefersEnvironment(t *testing.T) {
	env := func(k string) string { return map[string]string{"COUNTERSIGN_DIR": "/e"}[k] }
	if got := (Config{Dir: "/f"}).Overlay(env).Dir; got != "/e" {
		t.Errorf("Dir: got %s, want /e", got)
	}
	if got := (Config{Dir: "/f"}).Overlay(func(string) string { return "" }).Dir; got != "/f" {
		t.Errorf("Dir without the variable: got %s, want /f", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("dir: x\nlisteners: {mqtt: ':1'}\nengine: {storage_limit: 1GiB}\n"))
	f.Add([]byte("names: [&a b, *a]\noverlap: 24h\n"))
	f.Add([]byte("log:\n  level: info\n---\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		y, err := yaml.Marshal(c)
		if err != nil {
			t.Fatalf("a Config that was read can't be written: %v", err)
		}
		if _, err := Parse(y); err != nil {
			t.Fatalf("a Config that was written can't be read: %v\n%s", err, y)
		}
		if c.RootPassphrase == "" && c.Database == "" && c.Engine == (Engine{}) {
			c.Check() // reads files that the text names: only where it names none
		}
	})
}
