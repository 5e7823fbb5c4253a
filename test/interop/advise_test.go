package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/test/kit"
)

// TestAdvisedCommandsWork types what the advisor says, for each of its methods but
// tpm, which docs/enrollment.md has in full. What a person has to fill in, and
// the files that the answers presume, are made here.
func TestAdvisedCommandsWork(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "bash", "openssl", "curl", "jq")
	const maker = `
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout maker.key -subj '/CN=Acme devices' -days 30 -out maker.pem
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout idevid.key -subj /serialNumber=pump-7 -out idevid.csr
openssl x509 -req -in idevid.csr -CA maker.pem -CAkey maker.key -CAcreateserial -days 30 -out idevid.pem -extfile <(echo keyUsage = critical, digitalSignature)
`
	for _, c := range []struct{ method, answers, before, after string }{
		{"token", "hardware=none,factory=no,who=installer,network=direct,count=3", "", ""},
		{"token", "hardware=none,factory=no,who=installer,network=direct,count=3000", "printf '%s\n' id pump-6 pump-7 > devices.csv", ""},
		{"token", "hardware=none,factory=no,who=nobody,network=proxy,count=3", "", ""},
		{"factory", "hardware=none,factory=no,who=factory,network=direct,count=3", "", "jq -r 'select(.item) | .certificate' certificates.jsonl > pump-7.pem"},
		{"claim", "hardware=none,factory=no,who=nobody,network=direct,count=3", "", ""},
		{"claim", "hardware=none,factory=no,who=owner,network=direct,count=3", "", ""},
		{"idevid", "hardware=none,factory=yes,who=installer,network=direct,count=3", maker, ""},
		{"thumbprint", "hardware=secure-element,factory=no,who=nobody,network=direct,count=3", "", ""},
		{"key", "hardware=none,factory=no,who=factory,network=proxy,count=3", "", ""},
		{"group", "hardware=none,factory=no,who=factory,network=proxy,count=3000", "", ""},
	} {
		t.Run(c.method, func(t *testing.T) {
			dir := shortDir(t)
			if err := os.Symlink(program, filepath.Join(dir, "countersign")); err != nil {
				t.Fatal(err)
			}
			data := filepath.Join(dir, ".countersign")
			s := startSite(t, data, "dev", "--dir", data, "--ports", "0")
			commands := pasted(t, dir, "countersign enroll advise -o json --answers "+c.answers+" | jq -r '.commands[].text'")
			fill := strings.NewReplacer(
				"8443", portIn(t, s.ends.Enroll), "8080", portIn(t, s.ends.API), "approve ID", "approve $(countersign enroll pending -o name)",
				"cset_...", `$(sed -n 's/^pump-7,//p' tokens.csv; tail -n 1 token)`, "-o name\nexport", "-o name > token\nexport",
			)
			pasted(t, dir, "touch token tokens.csv\n"+c.before+"\n"+fill.Replace(commands)+c.after+"\nopenssl verify -CAfile .countersign/roots.pem -untrusted pump-7.pem pump-7.pem")
			enrolledBy(t, s, "pump-7", c.method)
		})
	}
}
