package command

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// leaves calls f with each command that does something.
func leaves(c *cobra.Command, f func(*cobra.Command)) {
	if c.RunE != nil && !c.HasSubCommands() {
		f(c)
	}
	for _, sub := range c.Commands() {
		leaves(sub, f)
	}
}

// TestEveryListSpeaksEveryFormat runs each command that lists, over a server with some of
// everything that is easily made.
func TestEveryListSpeaksEveryFormat(t *testing.T) {
	w := newWorld(t)
	w.Enroll(t, "pump-7")
	for _, line := range []string{
		"device create pump-8 --fleet default --owner ana --tag site=north", "enroll token --device pump-8", "block add 192.0.2.0/24 --yes --reason test",
		"device secret create pump-8", "operator token grafana --role viewer", "access-token create pump-7", "audit run --check CRL_STALE_CHECK --wait",
		"audit suppress DEVICE_ORPHANED_CHECK device:pump-* --until 30d --reason known", "fleet rule set default networks 192.0.2.0/24",
	} {
		w.do(strings.Fields(line)...)
	}
	arguments := map[string]string{"device secret list": "pump-8", "fleet rule list": "default", "policy history": "default"}
	n := 0
	leaves(rootCommand(&Env{Getenv: func(string) string { return "" }}), func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), "countersign ")
		if c.Flag("limit") == nil && c.Name() != "list" && c.Name() != "suppressions" || strings.HasPrefix(path, "policy replay") {
			return
		}
		n++
		for _, format := range []string{formatTable, formatWide, formatJSON, formatYAML, formatName} {
			args := append(strings.Fields(path+" "+arguments[path]), "-o", format)
			out, errOut := w.do(args...)
			if format == formatJSON && !json.Valid([]byte(out)) {
				t.Errorf("%s -o json: not JSON: %s", path, out)
			}
			if format == formatTable && out == "" && strings.TrimSpace(errOut) != "None." {
				t.Errorf("%s: nothing is listed, and said: %q", path, errOut)
			}
		}
	})
	if n < 20 {
		t.Errorf("%d commands list something, want at least 20", n)
	}
}

// TestCommandsCheckTheirArguments gives each command one argument more than its line of
// use names, and one less: both are mistakes of usage, before anything is done.
func TestCommandsCheckTheirArguments(t *testing.T) {
	leaves(rootCommand(&Env{Getenv: func(string) string { return "" }}), func(c *cobra.Command) {
		names := arguments(c.Use)
		if strings.ContainsAny(c.Use, "[|") || strings.Contains(c.Use, "...") || c.Name() == "explain" {
			return // they check their arguments themselves
		}
		if err := c.Args(c, slices.Repeat([]string{"x"}, len(names)+1)); exitCode(err) != exitUsage {
			t.Errorf("%s with an argument too many: got %v", c.CommandPath(), err)
		}
		if len(names) == 0 {
			return
		}
		if err := c.Args(c, slices.Repeat([]string{"x"}, len(names)-1)); exitCode(err) != exitUsage || !strings.HasPrefix(err.Error(), names[len(names)-1]+" is missing") {
			t.Errorf("%s without its last argument: got %v", c.CommandPath(), err)
		}
	})
}

// TestCommandsThatTakeAwayAsk runs each command with --yes without it: with no terminal to
// ask on it refuses, and what it would have ended is still there.
func TestCommandsThatTakeAwayAsk(t *testing.T) {
	w := newWorld(t)
	w.Enroll(t, "pump-7")
	secret, _ := w.do("device", "secret", "create", "pump-7", "-o", "json")
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(secret), &made); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"device suspend pump-7 --reason test", "device revoke pump-7 --reason keyCompromise", "device retire pump-7", "device purge pump-7",
		"device secret stop pump-7 " + made.ID, "block add 192.0.2.0/24", "operator revoke x", "hold drop x", "cert revoke abcd --reason keyCompromise",
	} {
		code, out, errOut := w.run(strings.Fields(line)...)
		if code != exitUsage || !strings.Contains(errOut, "Add --yes") || out != "" {
			t.Errorf("%s: got exit code %d and %s%s, want a refusal without --yes", line, code, out, errOut)
		}
	}
	if out, _ := w.do("device", "get", "pump-7"); !strings.Contains(out, "active") && !strings.Contains(out, "pending") {
		t.Errorf("the device was changed: %s", out)
	}
	for _, line := range []string{"device suspend pump-7 --yes", "device revoke pump-7 --yes", "cert revoke abcd --yes", "enroll stop x"} {
		if code, _, errOut := w.run(strings.Fields(line)...); code != exitUsage || !strings.Contains(errOut, "--reason is missing") {
			t.Errorf("%s: got exit code %d and %s, want that the reason is missing", line, code, errOut)
		}
	}
}

func TestSecretsAreAloneOnStandardOutput(t *testing.T) {
	w := newWorld(t)
	w.Enroll(t, "pump-7")
	for _, line := range []string{"operator token grafana --role viewer", "access-token create pump-7", "enroll token --device pump-8"} {
		out, errOut := w.do(strings.Fields(line)...)
		if strings.Count(out, "\n") != 1 || strings.ContainsAny(strings.TrimSpace(out), " \t") {
			t.Errorf("%s: got %q, want the secret and nothing else", line, out)
		}
		if strings.Contains(errOut, strings.TrimSpace(out)) || !strings.Contains(errOut, "not shown again") {
			t.Errorf("%s: got %q on standard error", line, errOut)
		}
		named, _ := w.do(append(strings.Fields(line), "-o", "name")...)
		if strings.Count(named, "\n") != 1 {
			t.Errorf("%s -o name: got %q", line, named)
		}
	}
}
