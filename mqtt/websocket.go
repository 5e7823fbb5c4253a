package mqtt

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"

	"github.com/coder/websocket"

	"github.com/countersign-iot/countersign/edge"

	countersign "github.com/countersign-iot/countersign"
)

// WebSocketPath is where MQTT over WebSocket is served (MQTT 5, 6).
const WebSocketPath = "/mqtt"

const (
	// webSocketProtocol is the name that both sides must agree on, [MQTT-6.0.0-3].
	webSocketProtocol = "mqtt"
	// maxUpgrade bounds the request that becomes a WebSocket: a browser sends its
	// cookies for the host along, of which each may have 4 KiB.
	maxUpgrade = 32 << 10
	// webSocketBuffer holds what a browser's typical message needs, each way; it
	// stays for the session's life.
	webSocketBuffer = 1 << 10
	// messagePackets is how many of the largest packets one message may hold.
	// Messages are read as a stream, so this bounds only how long one goes on.
	messagePackets = 4
	// maxCloseReason is what fits a close frame (RFC 6455, 5.5).
	maxCloseReason = 123
)

// webSocket is the stream of MQTT packets in the binary messages of a WebSocket:
// packets may be split and joined as the sender likes, [MQTT-6.0.0-2].
type webSocket struct {
	*edge.Conn
	conn    *websocket.Conn
	message io.Reader // the one that is being read; nil between two; owned by the reader
	gone    atomic.Bool

	// Owned by the holder of the outbox's lock.
	status websocket.StatusCode // to be sent with the close frame
	reason string
}

// Read reads on in the message or goes to the next one. Deadlines are those of
// the socket; pings are answered on the way.
func (w *webSocket) Read(p []byte) (int, error) {
	for {
		if w.message == nil {
			kind, r, err := w.conn.Reader(context.Background())
			if err != nil {
				return 0, w.readError(err)
			}
			if kind != websocket.MessageBinary { // [MQTT-6.0.0-1]
				return 0, malformed("a text message")
			}
			w.message = r
		}
		n, err := w.message.Read(p)
		if errors.Is(err, io.EOF) {
			w.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, w.readError(err)
		}
	}
}

func (w *webSocket) readError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, websocket.ErrMessageTooBig):
		return breach(PacketTooLarge, "a message of more than %d of the largest packets", messagePackets)
	case websocket.CloseStatus(err) != -1: // and it has been answered
		w.gone.Store(true)
		return io.EOF
	}
	return err
}

// Write sends p as one message.
func (w *webSocket) Write(p []byte) (int, error) {
	if err := w.conn.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// close sends last, if there is something to say, and the close frame. It does
// not wait for the peer's, as the library would. The caller has the outbox's lock
// and has set the deadline.
func (w *webSocket) close(last []byte) error {
	if len(last) > 0 {
		if _, err := w.Write(last); err != nil {
			return err
		}
	}
	if w.gone.Load() {
		return nil
	}
	reason := w.reason
	for i := range reason {
		if i > maxCloseReason-4 { // the start of a character of up to 4 bytes
			reason = reason[:i]
			break
		}
	}
	frame := []byte{0x88, byte(2 + len(reason)), 0, 0}      //nolint:gosec // at most 125
	binary.BigEndian.PutUint16(frame[2:], uint16(w.status)) //nolint:gosec // one of ours
	_, err := w.Conn.Write(append(frame, reason...))
	return err
}

// closeStatus is how a browser, whose page sees no MQTT packet of 3.1.1 for it, learns how
// the session ended (RFC 6455, 7.4.1).
func closeStatus(c countersign.EndCode) websocket.StatusCode {
	if c == countersign.EndShutdown {
		return websocket.StatusGoingAway
	}
	return websocket.StatusPolicyViolation
}
