package command

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/sdk"
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

// usageError is a command line that cannot be done, whatever the server says.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// failed is an outcome that has been printed already: only its exit code is left.
type failed int

func (f failed) Error() string { return fmt.Sprintf("exit %d", int(f)) }

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return usagef("%s %q is not one of %s", flag, value, strings.Join(allowed, ", "))
}

// exitCodes are the exit codes of refusals that are not plain failures.
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
