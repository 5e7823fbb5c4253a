package sdk_test

import (
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/sdk"
)

func TestSCRAMDistrustsTheServer(t *testing.T) {
	begin := func() (*sdk.SCRAM, string) {
		s := &sdk.SCRAM{Device: "pump-1", Secret: "csds_x"}
		_, nonce, _ := strings.Cut(string(s.First()), ",r=")
		return s, nonce
	}
	for name, asked := range map[string]func(nonce string) string{
		"nothing":             func(string) string { return "" },
		"another nonce":       func(string) string { return "r=ABCDEFGH,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096" },
		"no nonce of its own": func(n string) string { return "r=" + n + ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096" },
		"no salt":             func(n string) string { return "r=" + n + "x,s=,i=4096" },
		"too few iterations":  func(n string) string { return "r=" + n + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1" },
		"too many":            func(n string) string { return "r=" + n + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=2000000000" },
	} {
		s, nonce := begin()
		if got, err := s.Answer([]byte(asked(nonce))); err == nil {
			t.Errorf("%s: answered with %q", name, got)
		}
	}
	s, nonce := begin()
	if _, err := s.Answer([]byte("r=" + nonce + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")); err != nil {
		t.Fatal(err)
	}
	for _, final := range []string{"", "v=", "e=other-error", "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="} {
		if s.Check([]byte(final)) == nil {
			t.Errorf("took %q for the server's proof", final)
		}
	}
	if (&sdk.SCRAM{}).Check([]byte("v=")) == nil {
		t.Error("an exchange that was not begun is complete")
	}
}
