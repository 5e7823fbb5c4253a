package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
	"github.com/spf13/cobra"
)

// The exit codes, a contract with scripts.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitNotAllowed  = 4
	exitRefused     = 5
	exitUnreachable = 6
	exitPartly      = 7
	exitInterrupted = 130
)

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: fmt.Sprintf(`The exit codes of every command:

  %3d  done
  %3d  failed
  %3d  usage: the command line, or a value in it, is wrong
  %3d  not found
  %3d  not signed in, or not allowed
  %3d  refused: the thing is not in a state that allows it
  %3d  the server cannot be reached, or answered too late
  %3d  partly done
  %3d  interrupted`,
			exitOK, exitFailed, exitUsage, exitNotFound, exitNotAllowed, exitRefused, exitUnreachable, exitPartly, exitInterrupted),
	}
}

func environmentTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "environment",
		Short: "Environment variables that commands read",
		Long: `The environment of every command:

  COUNTERSIGN_DIR   data folder, where --dir is absent
  NO_COLOR          set to anything: no color
  CLICOLOR          0: no color
  CLICOLOR_FORCE    not 0: color even where the output is no terminal
  LC_ALL, LC_CTYPE, LANG
                    a locale that is not UTF-8 gets plain ASCII signs

A flag wins over the environment.`,
	}
}

// usageError is a command line that cannot be done, whatever the server says.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// failed is an outcome that has been told already: only its exit code is left.
type failed int

func (f failed) Error() string { return fmt.Sprintf("exit %d", int(f)) }

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return usagef("%s %q is not one of %s", flag, value, strings.Join(allowed, ", "))
}

// exitCodes tells the codes of refusals that are not plain failures.
var exitCodes = map[countersign.Code]int{
	countersign.BadRequest:       exitUsage,
	countersign.TooLarge:         exitUsage,
	countersign.NotFound:         exitNotFound,
	countersign.CertUnknown:      exitNotFound,
	countersign.Unauthenticated:  exitNotAllowed,
	countersign.BadCredential:    exitNotAllowed,
	countersign.CredentialSpent:  exitNotAllowed,
	countersign.CredentialExpire: exitNotAllowed,
	countersign.NotAllowed:       exitNotAllowed,
	countersign.Conflict:         exitRefused,
	countersign.DeviceIsActive:   exitRefused,
	countersign.DeviceOnHold:     exitRefused,
	countersign.DeviceGone:       exitRefused,
	countersign.CertIsRevoked:    exitRefused,
	countersign.CertIsHeld:       exitRefused,
	countersign.CertExpired:      exitRefused,
	countersign.KeyReused:        exitRefused,
	countersign.ForkDetected:     exitRefused,
	countersign.Pending:          exitRefused,
	countersign.RateLimited:      exitUnreachable,
	countersign.OverBudget:       exitUnreachable,
	countersign.Misconfigured:    exitRefused,
	countersign.Unavailable:      exitUnreachable,
}

func exitCode(err error) int {
	if f, ok := errors.AsType[failed](err); ok {
		return int(f)
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*sdk.Unreachable](err); ok {
		if errors.Is(err, fs.ErrPermission) {
			return exitNotAllowed
		}
		return exitUnreachable
	}
	if code, ok := exitCodes[countersign.CodeOf(err)]; ok {
		return code
	}
	return exitFailed
}

// explain tells an error: one sentence, the next step, the request's id.
func (env *Env) explain(err error) {
	if _, told := errors.AsType[failed](err); told {
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
