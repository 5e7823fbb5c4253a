package server

import (
	"os"
	"path/filepath"
	"testing"
)

func TestANodeKeepsItsName(t *testing.T) {
	path := filepath.Join(t.TempDir(), nodeFile)
	if got, err := messageNode("west", path); err != nil || got != "west" {
		t.Errorf("with a setting: got %q, %v, want west", got, err)
	}
	first, err := messageNode("", path)
	if err != nil || first == "" {
		t.Fatalf("at first: got %q, %v, want a name", first, err)
	}
	if again, err := messageNode("", path); err != nil || again != first {
		t.Errorf("the next time: got %q, %v, want %q", again, err, first)
	}
	for _, bad := range []string{"", "\n", "two words", string(make([]byte, 100))} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := messageNode("", path); err == nil {
			t.Errorf("a file with %q: got the name %q, want an error", bad, got)
		}
	}
}
