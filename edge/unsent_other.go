//go:build !linux

package edge

import (
	"net"
	"syscall"
)

// unsent is not known here.
func unsent(syscall.RawConn) (n int, ok bool) { return 0, false }

func rawConn(net.Conn) syscall.RawConn { return nil }
