package mqtt

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

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

// ServeWebSocket serves MQTT over WebSocket on ln, which speaks plain TCP, until
// ctx ends or Close is called. It closes ln. The error is nil after ctx or Close.
//
// The listener is one of its own because it requests no client certificate:
// browsers fail, or ask their user, where one is requested.
func (s *Server) ServeWebSocket(ctx context.Context, ln net.Listener) error {
	s.init()
	return s.web.Serve(ctx, ln)
}

// handleWeb makes a WebSocket of a connection and opens its session as any other.
func (s *Server) handleWeb(ctx context.Context, c *edge.Conn) func() {
	_ = c.SetDeadline(s.Now().Add(s.Limits.Connect))
	w, agent, err := s.upgrade(c)
	if err != nil {
		if !errors.Is(err, errPage) {
			s.count.upgradeFailed.Add(1)
		}
		s.Log.DebugContext(ctx, "no WebSocket", "remote", c.Remote, "error", err)
		_ = c.SetDeadline(s.Now().Add(lingerTimeout))
		drain(c)
		return nil
	}
	_ = c.SetWriteDeadline(time.Time{}) // the outbox sets its own
	x := s.newSession(c, w)
	x.down.closing = w.close
	x.web, x.software = w, agent
	serve := s.greet(ctx, x)
	if serve == nil {
		_ = w.conn.CloseNow()
		return nil
	}
	return func() {
		defer func() { _ = w.conn.CloseNow() }()
		serve()
	}
}

// upgrade answers the HTTP request that opens a WebSocket (RFC 6455, 4.2). A
// request that opens none gets an HTTP answer.
func (s *Server) upgrade(c *edge.Conn) (w *webSocket, agent string, err error) {
	limit := &io.LimitedReader{R: c, N: maxUpgrade}
	a := &upgradeAnswer{conn: c, in: bufio.NewReaderSize(limit, webSocketBuffer), header: http.Header{}}
	r, err := http.ReadRequest(a.in)
	if err != nil {
		return nil, "", fmt.Errorf("couldn't read the request: %w", err)
	}
	if r.URL.Path != WebSocketPath {
		return nil, "", s.page(c, a, r)
	}
	conn, err := websocket.Accept(a, r, &websocket.AcceptOptions{
		Subprotocols: []string{webSocketProtocol}, OriginPatterns: s.Origins,
		CompressionMode: websocket.CompressionDisabled, // it costs memory for each session, and TLS over it leaks lengths
	})
	if err != nil {
		return nil, "", err
	}
	w = &webSocket{conn: conn, Conn: c, status: websocket.StatusNormalClosure}
	conn.SetReadLimit(messagePackets * int64(max(s.Limits.MaxPacket, maxConnect)))
	if conn.Subprotocol() != webSocketProtocol {
		w.status, w.reason = websocket.StatusProtocolError, "the subprotocol mqtt was not offered"
		err = errors.Join(errors.New(w.reason), w.close(nil), conn.CloseNow())
		return nil, "", err
	}
	return w, r.UserAgent(), nil
}

// errPage is how a request ends that was for a page, and was answered.
var errPage = errors.New("the path is another")

// pageTimeout bounds the answer to a request that opens no WebSocket.
const pageTimeout = 30 * time.Second

// page answers a request that is not for MQTT, the one of its connection.
func (s *Server) page(c *edge.Conn, a *upgradeAnswer, r *http.Request) error {
	if s.Pages == nil {
		http.Error(a, "MQTT is at "+WebSocketPath, http.StatusNotFound)
		return errPage
	}
	_ = c.SetDeadline(s.Now().Add(pageTimeout))
	r.RemoteAddr = c.Remote.String()
	state := c.ConnectionState()
	r.TLS = &state
	s.Pages.ServeHTTP(a, r)
	return errPage
}

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

// upgradeAnswer is the http.ResponseWriter of the one answer on a connection.
type upgradeAnswer struct {
	conn   *edge.Conn
	in     *bufio.Reader
	header http.Header
	status int
}

func (a *upgradeAnswer) Header() http.Header { return a.header }

// WriteHeader sends the status and the header. What is no upgrade is the last
// answer on the connection.
func (a *upgradeAnswer) WriteHeader(status int) {
	if a.status != 0 {
		return
	}
	a.status = status
	if status != http.StatusSwitchingProtocols {
		a.header.Set("Connection", "close")
	}
	head := "HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) + "\r\n"
	out := bufio.NewWriterSize(a.conn, webSocketBuffer)
	_, _ = out.WriteString(head)
	_ = a.header.Write(out)
	_, _ = out.WriteString("\r\n")
	_ = out.Flush() // a failure shows at the next read
}

func (a *upgradeAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.conn.Write(p)
}

// Hijack hands the connection over to the WebSocket.
func (a *upgradeAnswer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return unclosed{a.conn}, bufio.NewReadWriter(a.in, bufio.NewWriterSize(a.conn, webSocketBuffer)), nil
}

// unclosed is the socket as the WebSocket library has it. When the library gives
// up it may not wait for a stalled peer; the gate closes the socket.
type unclosed struct{ *edge.Conn }

func (u unclosed) Close() error {
	return u.SetDeadline(time.Unix(1, 0))
}
