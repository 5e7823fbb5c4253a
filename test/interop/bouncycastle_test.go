package interop

import (
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

// bouncyCastle are the jars of Debian's libbcprov-java and libbcpkix-java.
var bouncyCastle = []string{"/usr/share/java/bcprov.jar", "/usr/share/java/bcutil.jar", "/usr/share/java/bcpkix.jar"}

// TestBouncyCastleEnrollsAndReenrolls runs the EST client of Bouncy Castle on
// Java's own TLS. It sends its token only when it is asked for, and closes the
// answer that asks without reading it.
func TestBouncyCastleEnrollsAndReenrolls(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "java", "javac") // the driver is compiled as it is run
	for _, jar := range bouncyCastle {
		if _, err := os.Stat(jar); err != nil {
			kit.Missing(t, "%s is not installed", jar)
		}
	}
	s := countersigntest.Start(t)
	server, err := url.Parse(s.Endpoints().Enroll)
	if err != nil {
		t.Fatal(err)
	}
	java := exec.CommandContext(t.Context(), "java", "-cp", strings.Join(bouncyCastle, ":"), "testdata/bouncycastle/EstClient.java",
		"localhost", server.Port(), s.Endpoints().Roots, "pump-7")
	java.Stdin = strings.NewReader(s.Token(t, api.NewToken{Device: "pump-7"}) + "\n")
	out, err := java.CombinedOutput()
	want := `cacerts 2
csrattrs true
wrong token 401
enrolled CN=pump-7
renewed CN=pump-7 true
`
	if got := string(out); err != nil || got != want {
		t.Errorf("EST by Bouncy Castle: %v, got\n%s\nwant\n%s", err, got, want)
	}
}
