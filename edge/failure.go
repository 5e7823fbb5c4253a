package edge

import (
	"sync"
	"time"
)

// Failure is why a TLS handshake failed; the set is fixed.
type Failure string

// The failures.
const (
	FailureTimeout Failure = "timeout" // it did not complete in time
	FailureClosed  Failure = "closed"  // the client left
	FailureNotTLS  Failure = "not_tls" // it sent something else
	FailureVersion Failure = "version" // it offered no supported version
	FailureALPN    Failure = "alpn"    // it offered no supported protocol
	FailureCipher  Failure = "cipher"  // no suite, group or signature algorithm in common
	FailureChain   Failure = "chain"   // its certificates are over a bound, see MaxChain
	FailureAlert   Failure = "alert"   // it sent an alert: most often it does not trust our certificate
	FailureNoTurn  Failure = "no_turn" // the node had no time for it
	FailureOther   Failure = "other"   // a certificate or signature that cannot be read, a breach of the protocol
)

// FailureCount names one count of failed handshakes.
type FailureCount struct {
	Listener string
	Failure  Failure
}

// failureEvery is how often a failed handshake of one listener and kind is logged.
const failureEvery = 10 * time.Second

// failures counts the handshakes that failed.
type failures struct {
	mu     sync.Mutex
	counts map[FailureCount]uint64
	logged map[FailureCount]logged
}

// logged is when a failure was logged last, and which one of its kind it was.
type logged struct {
	at time.Time
	n  uint64
}
