package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
	"github.com/spf13/cobra"
)

// hint is the command that an operator runs next after an error of a code. The server
// words its errors for all of its clients; which command helps is known here.
type hint struct {
	code countersign.Code
	// of is the beginning of the command that failed, without the program's name; empty
	// matches every command. The first hint that matches counts.
	of string
	// run is the next command. In it {1} is the first argument of the command that failed
	// and {device} its flag --device, or else its first argument.
	run string
}

var hints = []hint{
	{countersign.NotFound, "device secret", "device secret list {1}"},
	{countersign.NotFound, "device", "device list"},
	{countersign.NotFound, "session", "session list"},
	{countersign.NotFound, "enroll approve", "enroll pending"},
	{countersign.NotFound, "enroll reject", "enroll pending"},
	{countersign.NotFound, "enroll stop", "enroll list"},
	{countersign.NotFound, "enroll", "fleet list"},
	{countersign.NotFound, "cert", "cert list"},
	{countersign.NotFound, "ca", "ca list"},
	{countersign.NotFound, "fleet rule", "fleet rule list {1}"},
	{countersign.NotFound, "fleet", "fleet list"},
	{countersign.NotFound, "policy explain", "device list"},
	{countersign.NotFound, "policy", "fleet list"},
	{countersign.NotFound, "profile", "profile list"},
	{countersign.NotFound, "block", "block list"},
	{countersign.NotFound, "hold", "hold list"},
	{countersign.NotFound, "alert test", "alert channels"},
	{countersign.NotFound, "alert", "alert list"},
	{countersign.NotFound, "access-token create", "device list"},
	{countersign.NotFound, "access-token", "access-token list"},
	{countersign.NotFound, "audit suppress", "audit checks"},
	{countersign.NotFound, "audit unsuppress", "audit suppressions"},
	{countersign.NotFound, "audit run", "audit checks"},
	{countersign.NotFound, "audit", "audit list"},
	{countersign.NotFound, "operator", "operator list"},
	{countersign.CertUnknown, "", "cert list"},
	{countersign.Conflict, "device secret create", "device secret rotate {1}"},
	{countersign.Conflict, "device secret set", "device secret rotate {1}"},
	{countersign.Conflict, "device secret", "device secret list {1}"},
	{countersign.Conflict, "device", "device get {1}"},
	{countersign.Conflict, "enroll approve", "enroll pending --state ''"},
	{countersign.Conflict, "enroll reject", "enroll pending --state ''"},
	{countersign.Conflict, "enroll", "enroll list"},
	{countersign.Conflict, "cert", "cert get {1}"},
	{countersign.Conflict, "ca", "ca list"},
	{countersign.Conflict, "fleet", "fleet get {1}"},
	{countersign.Conflict, "policy", "policy history {1}"},
	{countersign.Conflict, "hold", "hold list"},
	{countersign.Conflict, "alert", "alert show {1}"},
	{countersign.Conflict, "audit", "audit list"},
	{countersign.DeviceIsActive, "", "device get {device}"},
	{countersign.DeviceOnHold, "", "device reactivate {device}"},
	{countersign.DeviceGone, "", "device events {device}"},
	{countersign.CertIsRevoked, "", "cert get {1}"},
	{countersign.CertIsHeld, "", "cert get {1}"},
	{countersign.CertExpired, "", "cert list --expires-within 0s"},
	{countersign.KeyReused, "", "log list --type finding.key_reused"},
	{countersign.ForkDetected, "", "device events {device}"},
	{countersign.Pending, "", "enroll pending"},
	{countersign.RateLimited, "", "block list"},
	{countersign.OverBudget, "", "device usage {device}"},
	{countersign.CredentialSpent, "", "enroll list"},
	{countersign.CredentialExpire, "", "enroll list"},
	{countersign.Unavailable, "", "doctor"},
	{countersign.Misconfigured, "", "doctor"},
	{countersign.Internal, "", "doctor"},
}

// hintOf returns the command that helps after err, which failed returned; empty if none
// is known, or if the error names one itself.
func hintOf(err error, failed *cobra.Command) string {
	e := countersign.Public(err)
	if strings.Contains(e.Next, "countersign ") || !answered(err) {
		return ""
	}
	path, args := strings.TrimPrefix(failed.CommandPath(), "countersign "), failed.Flags().Args()
	for _, h := range hints {
		if h.code != e.Code || h.of != "" && h.of != path && !strings.HasPrefix(path, h.of+" ") {
			continue
		}
		first, device := "", ""
		if len(args) > 0 {
			first, device = args[0], args[0]
		}
		if f := failed.Flag("device"); f != nil && f.Changed {
			device = f.Value.String()
		}
		if strings.Contains(h.run, "{1}") && first == "" || strings.Contains(h.run, "{device}") && device == "" {
			return ""
		}
		return "countersign " + strings.NewReplacer("{1}", shellWord(first), "{device}", shellWord(device)).Replace(h.run)
	}
	return ""
}

// answered reports whether err is a refusal by the server or by one of its packages.
func answered(err error) bool {
	_, ok := errors.AsType[*countersign.Error](err)
	return ok
}

// shellWord writes an argument as a shell reads it.
func shellWord(s string) string {
	if plain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// explain prints an error: one sentence, the next step, the request's id.
func (env *Env) explain(err error) {
	if _, printed := errors.AsType[failed](err); printed {
		return
	}
	p := env.stderr()
	p.linef("%s %s", p.red("Error:"), oneLine(err.Error()))
	if next := nextStep(env, err); next != "" {
		p.linef("Next: %s", oneLine(next))
	}
	if e, ok := errors.AsType[*sdk.Error](err); ok && e.RequestID != "" {
		p.linef("Request: %s", printable(e.RequestID))
	}
}

// oneLine joins what errors.Join put on lines of their own.
func oneLine(s string) string { return printable(strings.ReplaceAll(s, "\n", "; ")) }

// howToStart says how a server comes to run on the data folder. A folder that may be
// a production one is never recommended for trying out.
func howToStart(env *Env) string {
	dir := env.dataDir()
	switch _, err := os.Stat(dir); {
	case server.IsDev(dir):
		return "start the server: countersign dev --dir " + dir
	case err != nil:
		return fmt.Sprintf("name the server's data folder with --dir or COUNTERSIGN_DIR: there is no folder %s; to try things out, start: countersign dev", dir)
	}
	return "start the server: countersign server run --dir " + dir + ", or its service; or name another data folder with --dir"
}

func nextStep(env *Env, err error) string {
	if _, ok := errors.AsType[*usageError](err); ok {
		return "add --help to see how it is used"
	}
	if _, ok := errors.AsType[*sdk.Unreachable](err); ok {
		switch {
		case errors.Is(err, fs.ErrPermission):
			return "run it as the user of the server, or join the group of its socket"
		case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
			return "look at the server's log, or wait longer with --timeout"
		}
		return howToStart(env)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return "stop what listens there, or choose another port: listeners in the configuration, or dev --ports 0"
	}
	if e, ok := errors.AsType[*sdk.Error](err); ok && len(e.Errors) > 0 {
		var parts []string
		for _, f := range e.Errors {
			parts = append(parts, f.Location+": "+f.Message)
		}
		return "correct " + strings.Join(parts, "; ")
	}
	if e, ok := errors.AsType[*countersign.Error](err); ok {
		return e.Next
	}
	return ""
}
