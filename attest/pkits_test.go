package attest_test

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/test/kit"
)

// pkitsDiffers are the cases of the NIST suite in which our answer is another one, and why.
var pkitsDiffers = map[string]string{
	"4.1.4 Valid DSA Signatures Test4":                        "DSA is not accepted",
	"4.1.5 Valid DSA Parameter Inheritance Test5":             "DSA is not accepted",
	"4.6.8 Valid pathLenConstraint Test8":                     "an end entity is no CA",
	"4.6.14 Valid pathLenConstraint Test14":                   "an end entity is no CA",
	"4.8.6 Overlapping Policies Test6 (Subpart 1)":            "an end entity is no CA",
	"4.8.6 Overlapping Policies Test6 (Subpart 2)":            "an end entity is no CA",
	"4.14.13 Valid onlyContainsCACerts CRL Test13":            "an end entity is no CA",
	"4.10.1.3 Valid Policy Mapping Test1 (Subpart 3)":         "no initial inhibition of policy mapping is offered",
	"4.12.3 inhibitAnyPolicy Test3 (Subpart 2)":               "no initial inhibition of anyPolicy is offered",
	"4.14.4 Valid distributionPoint Test4":                    "crypto/x509 cannot read names relative to a CRL's issuer",
	"4.14.5 Valid distributionPoint Test5":                    "crypto/x509 cannot read names relative to a CRL's issuer",
	"4.14.29 Valid cRLIssuer Test29":                          "crypto/x509 cannot read names relative to a CRL's issuer",
	"4.7.4 Invalid keyUsage Critical cRLSign False Test4":     "hangs on a list, and Go's copy of the suite has none",
	"4.7.5 Invalid keyUsage Not Critical cRLSign False Test5": "hangs on a list, and Go's copy of the suite has none",
}

// pkitsPolicy returns a policy of the suite by its name.
func pkitsPolicy(t *testing.T, name string) x509.OID {
	t.Helper()
	dotted := "2.5.29.32.0" // anyPolicy
	if n, ok := strings.CutPrefix(name, "NIST-test-policy-"); ok {
		dotted = "2.16.840.1.101.3.2.1.48." + n
	}
	oid, err := x509.ParseOID(dotted)
	if err != nil {
		t.Fatal(err)
	}
	return oid
}

func TestPathPassesNISTSuite(t *testing.T) {
	dir := pkitsDir(t)
	raw, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name                  string
		CertPath              []string
		ShouldValidate        bool
		InitialPolicySet      []string
		InitialExplicitPolicy bool
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		number, _, _ := strings.Cut(c.Name, " ")
		section := number[:strings.LastIndexByte(number, '.')]
		// Where the answer hangs on lists, only what the certificates allow can be shown.
		if !c.ShouldValidate && slices.Contains([]string{"4.4", "4.5", "4.14", "4.15"}, section) {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			var path []*x509.Certificate
			for _, name := range c.CertPath {
				der, err := os.ReadFile(filepath.Join(dir, "certs", name))
				if err != nil {
					t.Fatal(err)
				}
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					if c.ShouldValidate && pkitsDiffers[c.Name] == "" {
						t.Errorf("parse %s: %v", name, err)
					}
					return
				}
				path = append(path, cert)
			}
			slices.Reverse(path)
			last := len(path) - 1
			o := attest.PathOptions{Now: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), AllowNoEKU: true}
			if c.InitialExplicitPolicy || !slices.Equal(c.InitialPolicySet, []string{"anyPolicy"}) {
				for _, name := range c.InitialPolicySet {
					o.Policies = append(o.Policies, pkitsPolicy(t, name))
				}
			}
			_, err := attest.ValidatePath(path[:last], []attest.Anchor{{Certificate: path[last]}}, o)
			why, differs := pkitsDiffers[c.Name]
			if ((err == nil) == c.ShouldValidate) == differs {
				t.Errorf("%v: got error %v, want valid: %v, differs: %v (%s)", c.Name, err, c.ShouldValidate, differs, why)
			}
		})
	}
}

// pkitsDir finds the suite in the Go distribution.
func pkitsDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	dir := filepath.Join(strings.TrimSpace(string(out)), "src/crypto/x509/testdata/nist-pkits")
	if err == nil {
		_, err = os.Stat(dir)
	}
	if err != nil {
		kit.Missing(t, "the NIST suite of the Go distribution is not installed: %v", err)
	}
	return dir
}
