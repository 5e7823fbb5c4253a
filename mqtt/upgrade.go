package mqtt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/countersign-iot/countersign/edge"
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

// unclosed is the socket as the WebSocket library has it. The library must not wait for a
// stalled peer when it ends a session; the gate closes the socket.
type unclosed struct{ *edge.Conn }

func (u unclosed) Close() error {
	return u.SetDeadline(time.Unix(1, 0))
}
