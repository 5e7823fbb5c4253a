package mqtt

import (
	"context"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

const (
	// maxAuthSteps bounds the packets of one exchange; SCRAM (RFC 5802) takes two.
	maxAuthSteps = 8
	// reauthEvery bounds how often a session may authenticate again: each time reads
	// the database as a connect does.
	reauthEvery = time.Second
)

// auth is an AUTH packet (MQTT 5, 3.15).
type auth struct {
	code   Reason
	method string
	data   []byte
}

// parseAuth reads an AUTH packet. The data share the frame's memory.
func parseAuth(f frame) (auth, error) {
	var a auth
	s := scanner{b: f.body}
	named := false
	if len(s.b) > 0 {
		a.code = Reason(s.u8("the reason code"))
		s.properties(5, pktAuth, func(p property) error {
			switch p.id {
			case propAuthMethod:
				a.method, named = string(p.raw[3:]), true
			case propAuthData:
				a.data = p.raw[3:]
			}
			return nil
		})
	}
	if err := s.done(); err != nil {
		return a, err
	}
	if !named { // MQTT 5, 3.15.2.2.2
		return a, breach(ProtocolError, "AUTH without a method")
	}
	return a, nil
}

func (a auth) encode() []byte {
	props := appendAuthProps(nil, a.method, a.data)
	return packet(pktAuth<<4, appendProps([]byte{byte(a.code)}, 5, props))
}

// appendAuthProps is how both AUTH and CONNACK carry an exchange.
func appendAuthProps(b []byte, method string, data []byte) []byte {
	b = appendTextProp(b, propAuthMethod, method)
	if len(data) > 0 {
		b = appendText(append(b, propAuthData), data)
	}
	return b
}

// exchange is an authentication of several steps under way (MQTT 5, 4.12).
type exchange struct {
	countersign.Exchange
	steps  int
	done   bool
	failed error
	answer []byte // goes with the acceptance
}

// step passes the client's data to the exchange and returns what to send on, if
// the exchange goes on.
func (e *exchange) step(ctx context.Context, data []byte) (more []byte, err error) {
	if e.steps++; e.steps > maxAuthSteps {
		return nil, breach(ProtocolError, "more than %d steps of authentication", maxAuthSteps)
	}
	if len(data) > maxAuthData {
		return nil, breach(PacketTooLarge, "more than %d bytes of authentication data", maxAuthData)
	}
	answer, done, err := e.Next(ctx, data)
	if err != nil {
		e.failed = err
		return nil, nil
	}
	if e.done = done; done {
		e.answer = answer
		return nil, nil
	}
	return answer, nil
}

// maxAuthData bounds the data of one step of an exchange, each way; SCRAM needs less
// than 1 KiB.
const maxAuthData = 4 << 10
