package countersign_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// owners names the package whose rows each table holds. It alone has SQL over them;
// others call its functions.
var owners = map[string]string{
	"access_token": "access", "broker_session": "access", "device_secret": "access",
	"address_block": "lockout", "failure_count": "lockout",
	"policy_decision": "policies", "policy_version": "policies",
	"alert": "respond", "mitigation": "respond", "notification": "respond",
	"audit_check": "audit", "audit_finding": "audit", "audit_run": "audit", "audit_suppression": "audit",
	"authority": "ca", "certificate": "ca", "crl": "ca", "crl_change": "ca", "crl_chunk": "ca", "issuer_certificate": "ca", "profile": "ca", "registration_code": "ca", "serial_block": "ca",
	"credential": "registry", "device": "registry", "fleet": "registry", "waiting_enrollment": "registry",
	"event": "event", "event_cursor": "event", "event_head": "event", "event_time": "event",
	"key_check": "keycheck", "operator_token": "operator", "watermark": "watermark", "schema_version": "store",
	"mqtt_inbound": "broker", "mqtt_mark": "broker", "mqtt_node": "broker", "mqtt_queue": "broker", "mqtt_retained": "broker", "mqtt_session": "broker", "mqtt_subscription": "broker",
}

// foreignSQL are the tables that a package reads although they are another's, with the
// reason.
var foreignSQL = map[string]map[string]string{
	"access": {
		"authority":          "a connection is decided by one read: certificate, device, fleet and authority in one join",
		"certificate":        "as authority",
		"device":             "as authority",
		"fleet":              "as authority",
		"issuer_certificate": "as authority",
	},
	"policies": {
		"certificate": "the names in the certificates of all sessions of a fleet are read in batches",
		"device":      "as certificate, the tags of devices",
		"fleet":       "a fleet and the version in force are one read",
	},
	"test/bench": {
		"event":        "a database is filled with millions of rows past the server",
		"event_cursor": "as event",
		"event_head":   "as event",
	},
	"registry": {
		"authority": "a fleet's issuer is checked in its transaction, and registry comes before ca",
		"profile":   "as authority, a fleet's profile",
	},
}

var tableName = regexp.MustCompile(`\b(?:FROM|JOIN|INTO|UPDATE)\s+([a-z_]+)`)

// TestSQLStaysWithItsOwner reads the string literals of all packages: the rows of a
// table are read and written by the package that owns it.
func TestSQLStaysWithItsOwner(t *testing.T) {
	used := map[string]bool{}
	for _, f := range goFiles(t) {
		if isTest(f.path) || isTestKit(f.dir) {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Errorf("%s: %v", f.path, err)
			}
			for _, m := range tableName.FindAllStringSubmatch(text, -1) {
				owner, known := owners[m[1]]
				reason := foreignSQL[f.dir][m[1]]
				used[f.dir+"."+m[1]] = true
				if known && owner != f.dir && reason == "" {
					t.Errorf("%s has SQL over %s, a table of package %s: call a function of that", f.path, m[1], owner)
				}
			}
			return true
		})
	}
	for dir, tables := range foreignSQL {
		for table := range tables {
			if !used[dir+"."+table] {
				t.Errorf("package %s has no SQL over %s: its exception is out of date", dir, table)
			}
		}
	}
	if len(used) < len(owners)/2 {
		t.Errorf("found SQL over %d tables only: the test does not see it", len(used))
	}
}

// planned are rooms of the table that are still to be built.
var planned = words("query scep cmp acme awsiot dps console rotation agent cmd/countersign-agent")

// TestRingsNameWhatThereIs finds names of packages in the table that do not exist.
func TestRingsNameWhatThereIs(t *testing.T) {
	there := map[string]bool{}
	for _, f := range goFiles(t) {
		there[f.dir] = true
	}
	for _, r := range rings {
		for _, name := range slices.Concat(r.packages, r.own) {
			if !there[name] && !slices.Contains(planned, name) {
				t.Errorf("ring %s names %s, which there is not", r.name, name)
			}
		}
	}
	for _, name := range planned {
		if there[name] {
			t.Errorf("%s is there: it is no longer planned", name)
		}
	}
	for table, owner := range owners {
		if !there[owner] || strings.TrimSpace(table) == "" {
			t.Errorf("table %s belongs to %s, which there is not", table, owner)
		}
	}
}
