package server

import (
	"net"
	"net/http"

	"github.com/countersign-iot/countersign/edge"
)

const (
	// maxStatusPerAddress bounds the connections of one address to the status listener.
	// A question takes a moment; what stays is the download of a large list by a slow
	// client, which may take as long as it reads at all.
	maxStatusPerAddress = 128
	// maxStatus bounds those of all addresses. Beyond it a newcomer takes the place of
	// the connection that is open longest of the address with the most.
	maxStatus = 2048
	// statusBuffer bounds what the kernel holds of an answer whose client does not
	// read it. By itself it takes up to 4 MiB for each connection.
	statusBuffer = 256 << 10
)

// serveStatus adds the listener where relying parties ask, by plain HTTP and without
// any evidence. It has its own limits in place of the intake, so that downloads do not
// count against enrollment: a request holds 20 KiB at most, and lists are shared.
func (d *doors) serveStatus(listener net.Listener, h http.Handler) {
	if listener == nil {
		return
	}
	l := d.guard.Listen("status", sparing{listener}, edge.Limits{
		PreAuth: maxStatus, PreAuthPerAddress: maxStatusPerAddress, Handshake: d.connect,
	})
	d.add("status", l, h)
}

// sparing is a listener whose sockets have small buffers for what is to be sent.
type sparing struct{ net.Listener }

func (l sparing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(statusBuffer) // else it has the kernel's own
	}
	return c, err
}
