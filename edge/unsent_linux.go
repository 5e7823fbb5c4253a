package edge

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsent returns how many octets wait in the kernel for the peer (tcp(7), SIOCOUTQ).
func unsent(raw syscall.RawConn) (n int, ok bool) {
	var err error
	if raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) != nil {
		return 0, false
	}
	return n, err == nil
}

func rawConn(c net.Conn) syscall.RawConn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
