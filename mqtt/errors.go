package mqtt

import (
	"fmt"

	countersign "github.com/countersign-iot/countersign"
)

// Reason is an MQTT 5 reason code (MQTT 5, 2.4).
type Reason byte

// The reason codes that the gateway itself sends or reads.
const (
	Success                 Reason = 0x00
	DisconnectWithWill      Reason = 0x04
	NoSubscriptionExisted   Reason = 0x11
	ContinueAuthentication  Reason = 0x18
	ReAuthenticate          Reason = 0x19
	UnspecifiedError        Reason = 0x80
	MalformedPacket         Reason = 0x81
	ProtocolError           Reason = 0x82
	ImplementationSpecific  Reason = 0x83
	UnsupportedVersion      Reason = 0x84
	BadClientID             Reason = 0x85
	BadUserOrPassword       Reason = 0x86
	NotAuthorized           Reason = 0x87
	ServerUnavailable       Reason = 0x88
	ServerBusy              Reason = 0x89
	Banned                  Reason = 0x8A
	ServerShuttingDown      Reason = 0x8B
	BadAuthenticationMethod Reason = 0x8C
	KeepAliveTimeout        Reason = 0x8D
	SessionTakenOver        Reason = 0x8E
	BadTopicFilter          Reason = 0x8F
	BadTopicName            Reason = 0x90
	ReceiveMaximumExceeded  Reason = 0x93
	BadTopicAlias           Reason = 0x94
	PacketTooLarge          Reason = 0x95
	MessageRateTooHigh      Reason = 0x96
	QuotaExceeded           Reason = 0x97
	AdministrativeAction    Reason = 0x98
	ConnectionRateExceeded  Reason = 0x9F
	MaximumConnectTime      Reason = 0xA0
)

// The CONNACK return codes of MQTT 3.1.1 (3.2.2.3).
const (
	connAccepted             = 0
	connBadVersion           = 1
	connBadClientID          = 2
	connUnavailable          = 3
	connBadUserPassword      = 4
	connNotAuthorized        = 5
	subFailure          byte = 0x80 // SUBACK, MQTT 3.1.1, 3.9.3
)

// Refusal is one row of the table from our codes to the wire.
type Refusal struct {
	V3 byte   // CONNACK return code of MQTT 3.1.1
	V5 Reason // CONNACK reason code of MQTT 5
}

// RefusalOf is the CONNACK of a connection that was refused with code. A code
// that is not in the table, such as one of a later version, is not authorized.
func RefusalOf(code countersign.Code) Refusal {
	switch code {
	case countersign.SubjectMismatch:
		return Refusal{connBadClientID, BadClientID}
	case countersign.BadCredential, countersign.CredentialSpent, countersign.CredentialExpire:
		return Refusal{connBadUserPassword, BadUserOrPassword}
	case countersign.DeviceOnHold, countersign.DeviceGone, countersign.ForkDetected:
		return Refusal{connNotAuthorized, Banned}
	case countersign.RateLimited:
		return Refusal{connUnavailable, ConnectionRateExceeded}
	case countersign.Unavailable, countersign.Internal:
		return Refusal{connUnavailable, ServerUnavailable}
	case countersign.Conflict:
		return Refusal{connUnavailable, ServerBusy}
	case countersign.TooLarge:
		return Refusal{connNotAuthorized, QuotaExceeded}
	case countersign.OverBudget: // code 5 would have the device give up; it may come again later
		return Refusal{connUnavailable, QuotaExceeded}
	}
	// unauthenticated, not allowed, and whatever a certificate is refused for
	return Refusal{connNotAuthorized, NotAuthorized}
}

// protocolError is a breach of the protocol by the peer: what an MQTT 5 peer is
// sent before the connection is closed.
type protocolError struct {
	code Reason
	text string
}

func (e *protocolError) Error() string { return e.text }

func malformed(format string, args ...any) error {
	return &protocolError{MalformedPacket, fmt.Sprintf(format, args...)}
}

func breach(code Reason, format string, args ...any) error {
	return &protocolError{code, fmt.Sprintf(format, args...)}
}

// refusal ends a connection before its session: what goes into the CONNACK.
type refusal struct {
	Refusal
	reason string
}

func (r *refusal) Error() string { return r.reason }

func refuse(v3 byte, v5 Reason, reason string) error { return &refusal{Refusal{v3, v5}, reason} }

// refuseFor refuses with what a code of ours is on the wire.
func refuseFor(code countersign.Code, reason string) error { return &refusal{RefusalOf(code), reason} }
