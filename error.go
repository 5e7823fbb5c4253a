package countersign

import (
	"errors"
	"fmt"
	"time"
)

// Code is the machine-readable reason of a refusal. Each door maps codes to its
// protocol in errors.go, nowhere else.
type Code string

// The codes.
const (
	BadRequest       Code = "bad_request"        // malformed, or a value out of bounds
	TooLarge         Code = "too_large"          // over a size limit
	BadSignature     Code = "bad_signature"      // proof of possession failed
	WeakKey          Code = "weak_key"           // key type or size refused
	Unauthenticated  Code = "unauthenticated"    // no evidence was shown
	BadCredential    Code = "bad_credential"     //nolint:gosec // a code, no credential. Evidence shown is wrong or unknown
	CredentialSpent  Code = "credential_spent"   //nolint:gosec // a code. A one-time credential was used before
	CredentialExpire Code = "credential_expired" //nolint:gosec // a code. It was good once
	NotAllowed       Code = "not_allowed"        // known, but may not do this
	SubjectMismatch  Code = "subject_mismatch"   // the request names another subject
	DeviceIsActive   Code = "device_active"      // the id already has an identity in use
	DeviceOnHold     Code = "device_suspended"
	DeviceGone       Code = "device_retired"
	CertUnknown      Code = "certificate_unknown" // not issued by an authority of ours, or not on record
	CertIsRevoked    Code = "certificate_revoked"
	CertIsHeld       Code = "certificate_held"
	CertExpired      Code = "certificate_expired"
	CertNotYetValid  Code = "certificate_not_yet_valid"
	KeyReused        Code = "key_reused"    // the public key serves another device
	ForkDetected     Code = "fork_detected" // two holders of one identity
	NotFound         Code = "not_found"
	Conflict         Code = "conflict"        // the object is not in a state that allows the act
	RateLimited      Code = "rate_limited"    // try again after RetryAfter
	OverBudget       Code = "budget_exceeded" // the device has or uses more than its budget allows
	Pending          Code = "pending"         // the request awaits approval; ask again after RetryAfter
	Unavailable      Code = "unavailable"     // the authority cannot record now; nothing was done
	Misconfigured    Code = "misconfigured"   // valid evidence that the fleet or its settings cannot use; not counted as a guess
	Internal         Code = "internal"
)

// Error is a refusal or failure: one code, one sentence, one next step.
type Error struct {
	Code       Code
	Message    string        // what was refused and why; never a secret
	Next       string        // what to do about it; may be empty
	RetryAfter time.Duration // for RateLimited and Unavailable
	Err        error         // cause, for the log only
}

// Errorf returns an Error. Unauthenticated clients read the message too: it must not
// contain a cause that they should not read; use WithCause for that.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithCause adds err as the cause, for the log.
func (e *Error) WithCause(err error) *Error { e.Err = err; return e }

// WithNext adds the next step.
func (e *Error) WithNext(next string) *Error { e.Next = next; return e }

// WithRetry adds after what time to try again.
func (e *Error) WithRetry(d time.Duration) *Error { e.RetryAfter = d; return e }

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Detail returns the text of err with those of its causes, for the log.
func Detail(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Err != nil {
		return err.Error() + ": " + Detail(e.Err)
	}
	return err.Error()
}

// CodeOf returns the code of err: Internal for an error that carries none, empty for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// Public returns what an unauthenticated client may read of err: an *Error without its
// cause, anything else as a plain internal failure.
func Public(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: e.Code, Message: e.Message, Next: e.Next, RetryAfter: e.RetryAfter}
	}
	return &Error{Code: Internal, Message: "the server failed to do this", Next: "look in the server's log"}
}
