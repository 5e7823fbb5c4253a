package server_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // looks into a database whose server is stopped

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
	"github.com/countersign-iot/countersign/store/storetest"
)

// production is a configuration on free ports that is not development's.
func production(t *testing.T) config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := config.Dev(filepath.Join(dir, "d"), true)
	return cfg
}

// initialize founds a server.
func initialize(t *testing.T, cfg config.Config, plan ca.Plan) {
	t.Helper()
	list, made, err := server.Init(t.Context(), cfg, server.Options{Founding: &plan})
	if err != nil || !made || len(list) != 2 {
		t.Fatalf("Init: got %v, %v, %v, want two authorities", list, made, err)
	}
}

// starts opens a server as run does, and closes it.
func starts(t *testing.T, cfg config.Config, opts server.Options) error {
	t.Helper()
	s, err := server.New(t.Context(), cfg, opts)
	if err != nil {
		return err
	}
	return s.Close()
}

// serve runs a server until the test ends or stop is called.
func serve(t *testing.T, cfg config.Config) (admin *sdk.Admin, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := server.New(ctx, cfg, server.Options{})
	if err != nil {
		cancel()
		t.Fatalf("New: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return sdk.Local(s.Endpoints().Socket), stop
}

// execute changes a database whose server is stopped.
func execute(t *testing.T, cfg config.Config, q string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", cfg.Path("countersign.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), q, args...); err != nil {
		t.Fatal(err)
	}
}

func nextOf(err error) string {
	e, ok := errors.AsType[*countersign.Error](err)
	if !ok {
		return ""
	}
	return e.Next
}

func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestRunNeverFounds(t *testing.T) {
	t.Run("no folder", func(t *testing.T) {
		cfg := production(t)
		if err := starts(t, cfg, server.Options{}); !errors.Is(err, server.ErrNotFounded) {
			t.Errorf("New: got %v, want ErrNotFounded", err)
		}
		if left := files(t, cfg.Dir); len(left) != 0 {
			t.Errorf("files left: %v", left)
		}
	})
	t.Run("empty folder", func(t *testing.T) {
		cfg := production(t)
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := starts(t, cfg, server.Options{}); !errors.Is(err, server.ErrNotFounded) {
			t.Errorf("New: got %v, want ErrNotFounded", err)
		}
		if left := files(t, cfg.Dir); len(left) != 0 {
			t.Errorf("files left: %v", left)
		}
	})
	t.Run("empty PostgreSQL database", func(t *testing.T) {
		cfg := production(t)
		cfg.Database = config.Database(storetest.PostgresURL(t))
		if err := starts(t, cfg, server.Options{}); !errors.Is(err, server.ErrNotFounded) {
			t.Errorf("New: got %v, want ErrNotFounded", err)
		}
		if left := files(t, cfg.Path("keys")); len(left) != 0 {
			t.Errorf("keys left: %v", left)
		}
	})
}

func TestInitFoundsAsAsked(t *testing.T) {
	for _, root := range keystore.KeyTypes {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			cfg := production(t)
			initialize(t, cfg, ca.Plan{
				Name: "Acme", IssuingName: "Acme Devices 1", Organization: "Acme Inc.", Country: "DE", RootKey: root, IssuingKey: root,
				RootValidity: 20 * 365 * 24 * time.Hour, IssuingValidity: 5 * 365 * 24 * time.Hour,
			})
			admin, _ := serve(t, cfg)
			var names []string
			for a, err := range admin.Authorities(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, a.Subject)
				if a.Parent == "" && a.NotAfter.Sub(time.Now()) < 19*365*24*time.Hour {
					t.Errorf("the root ends at %v, want 20 years from now", a.NotAfter)
				}
			}
			if got := strings.Join(names, "; "); got != "CN=Acme Root,O=Acme Inc.,C=DE; CN=Acme Devices 1,O=Acme Inc.,C=DE" {
				t.Errorf("names: got %s", got)
			}
			doctor, err := admin.Doctor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range doctor.Checks {
				if c.Level == api.LevelFail {
					t.Errorf("doctor: %+v", c)
				}
			}
		})
	}
}

func TestInitChangesNothingThatIsThere(t *testing.T) {
	cfg := production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	before := files(t, cfg.Path("keys"))
	list, made, err := server.Init(t.Context(), cfg, server.Options{Founding: &ca.Plan{Name: "Two"}})
	if err != nil || made || len(list) != 2 || list[0].Subject != "CN=One Root" {
		t.Errorf("Init again: got %v, %v, %v, want what was there", list, made, err)
	}
	if after := files(t, cfg.Path("keys")); strings.Join(before, " ") != strings.Join(after, " ") {
		t.Errorf("keys: got %v, want %v", after, before)
	}
}

func TestInitRefusesKeysOfAnotherDatabase(t *testing.T) {
	cfg := production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	for _, f := range files(t, cfg.Dir) {
		if strings.HasPrefix(f, "countersign.db") {
			if err := os.Remove(cfg.Path(f)); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, _, err := server.Init(t.Context(), cfg, server.Options{Founding: &ca.Plan{Name: "Two"}})
	if countersign.CodeOf(err) != countersign.Conflict || !strings.Contains(err.Error(), "root.pem") {
		t.Errorf("Init with the keys of a database that is gone: got %v, want it refused", err)
	}
	// A founding that was interrupted goes on with its own keys.
	if err := os.WriteFile(cfg.Path("founding"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	initialize(t, cfg, ca.Plan{Name: "Two"})
}

func TestDevelopmentKeepsToItsOwnFolders(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, cfg config.Config){
		"founded":       func(t *testing.T, cfg config.Config) { initialize(t, cfg, ca.Plan{Name: "Production"}) },
		"configuration": func(t *testing.T, cfg config.Config) { write(t, cfg.Path("countersign.yaml"), "names: [a.example]\n") },
		"a node's keys": func(t *testing.T, cfg config.Config) { write(t, cfg.Path("keys/issuing.pem"), "x") },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := production(t)
			make(t, cfg)
			before := files(t, cfg.Dir)
			if err := starts(t, cfg, server.Options{Dev: true}); !errors.Is(err, server.ErrNotDev) {
				t.Errorf("New for development: got %v, want ErrNotDev", err)
			}
			if after := files(t, cfg.Dir); strings.Join(before, " ") != strings.Join(after, " ") {
				t.Errorf("files: got %v, want %v", after, before)
			}
			if server.IsDev(cfg.Dir) {
				t.Error("IsDev: got true")
			}
		})
	}
	t.Run("from before folders were marked", func(t *testing.T) {
		cfg := production(t)
		if err := starts(t, cfg, server.Options{Dev: true}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(cfg.Path("development.txt")); err != nil {
			t.Fatal(err)
		}
		if !server.IsDev(cfg.Dir) {
			t.Error("IsDev: got false")
		}
		if err := starts(t, cfg, server.Options{Dev: true}); err != nil {
			t.Errorf("New for development: %v", err)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKeysMustBeTheDatabases takes each key away, and puts another in its place.
func TestKeysMustBeTheDatabases(t *testing.T) {
	cfg, other := production(t), production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	initialize(t, other, ca.Plan{Name: "Two"})
	for _, name := range []string{"keys/root.pem", "keys/issuing.pem", "keys/seal.key"} {
		path := cfg.Path(name)
		right, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := os.ReadFile(other.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		for what, text := range map[string][]byte{"missing": nil, "another": wrong, "damaged": []byte("x\n")} {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if text != nil {
				write(t, path, string(text))
			}
			err := starts(t, cfg, server.Options{})
			if !errors.Is(err, server.ErrKeys) || !strings.Contains(err.Error(), name) || !strings.Contains(nextOf(err), "copy "+name) {
				t.Errorf("%s %s: got %v (%s), want it refused by name", name, what, err, nextOf(err))
			}
			if _, err := os.Stat(path); text == nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s was made anew", name)
			}
			write(t, path, string(right))
		}
		if err := starts(t, cfg, server.Options{}); err != nil {
			t.Errorf("with all keys in place: %v", err)
		}
	}
}

func TestASecondNodeIsToldWhichFilesToCopy(t *testing.T) {
	one, two := production(t), production(t)
	one.Database = config.Database(storetest.PostgresURL(t))
	two.Database = one.Database
	initialize(t, one, ca.Plan{Name: "One"})
	for _, opts := range []server.Options{{}, {Founding: &ca.Plan{Name: "Two"}}} {
		err := starts(t, two, opts)
		if want := "copy keys/root.pem and keys/issuing.pem and keys/seal.key from another node"; !errors.Is(err, server.ErrKeys) || !strings.Contains(nextOf(err), want) {
			// the order is that of the authorities
			t.Errorf("New on a second node: got %v (%s), want %q", err, nextOf(err), want)
		}
	}
	if left := files(t, two.Path("keys")); len(left) != 0 {
		t.Errorf("keys on the second node: got %v, want none", left)
	}
	if err := os.CopyFS(two.Path("keys"), os.DirFS(one.Path("keys"))); err != nil {
		t.Fatal(err)
	}
	if err := starts(t, two, server.Options{}); err != nil {
		t.Errorf("New with the keys: %v", err)
	}
}

func TestTheRootsPassphraseIsCheckedAtTheStart(t *testing.T) {
	cfg := production(t)
	t.Setenv("COUNTERSIGN_TEST_RIGHT", "correct horse")
	t.Setenv("COUNTERSIGN_TEST_WRONG", "battery staple")
	cfg.RootPassphrase = "env:COUNTERSIGN_TEST_RIGHT"
	initialize(t, cfg, ca.Plan{Name: "One"})
	for ref, want := range map[config.Secret]string{
		"":                           "is encrypted, and root_passphrase is not set",
		"env:COUNTERSIGN_TEST_WRONG": "root_passphrase does not open the root key",
		"env:COUNTERSIGN_TEST_RIGHT": "",
	} {
		cfg.RootPassphrase = ref
		err := starts(t, cfg, server.Options{})
		if want == "" && err != nil || want != "" && (!errors.Is(err, server.ErrKeys) || !strings.Contains(err.Error(), want)) {
			t.Errorf("root_passphrase %q: got %v, want %q", ref, err, want)
		}
	}
	cfg.OfflineRoot = true
	if err := os.Remove(cfg.Path("keys/root.pem")); err != nil {
		t.Fatal(err)
	}
	if err := starts(t, cfg, server.Options{}); err != nil {
		t.Errorf("with the root key elsewhere: %v", err)
	}
}

// TestAnOldDatabaseGetsItsCheckValues starts on a database without them: with the right
// sealing key, with another, and without one.
func TestAnOldDatabaseGetsItsCheckValues(t *testing.T) {
	cfg := production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	admin, stop := serve(t, cfg)
	if _, err := admin.CreateKey(t.Context(), api.NewKey{Device: "pump-1"}); err != nil { // it is sealed
		t.Fatal(err)
	}
	stop()
	right, err := os.ReadFile(cfg.Path("keys/seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	another := production(t)
	initialize(t, another, ca.Plan{Name: "Two"})
	wrong, err := os.ReadFile(another.Path("keys/seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  []byte
		want error
	}{{"another key", wrong, server.ErrKeys}, {"no key", nil, server.ErrKeys}, {"its key", right, nil}} {
		execute(t, cfg, `DELETE FROM key_check`)
		if err := os.Remove(cfg.Path("keys/seal.key")); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if tt.key != nil {
			write(t, cfg.Path("keys/seal.key"), string(tt.key))
		}
		if err := starts(t, cfg, server.Options{}); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	write(t, cfg.Path("keys/seal.key"), string(wrong))
	if err := starts(t, cfg, server.Options{}); !errors.Is(err, server.ErrKeys) {
		t.Errorf("another key once the check values are on record: got %v, want ErrKeys", err)
	}
	write(t, cfg.Path("keys/seal.key"), string(right))
	execute(t, cfg, `UPDATE key_check SET kind = 'of the future' WHERE name = 'seal'`)
	if err := starts(t, cfg, server.Options{}); !errors.Is(err, server.ErrKeys) || !strings.Contains(nextOf(err), "newer program") {
		t.Errorf("a check value of a newer program: got %v, want ErrKeys", err)
	}
}
