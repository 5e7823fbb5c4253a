package kit

import "net"

// Serve hands each connection that ln accepts to serve, and closes it behind that, until
// the test has ended.
func Serve(t interface{ Cleanup(end func()) }, ln net.Listener, serve func(net.Conn)) {
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				serve(c)
			}()
		}
	}()
}
