package server

import (
	"net"
	"os/user"
	"regexp"
	"strconv"
	"sync"
	"syscall"

	"github.com/countersign-iot/countersign/rest"
)

// userName is what of a user's name may be written into the log; any other user is
// named by number.
var userName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// peerNamed names the Unix user of each connection in its remote address.
func peerNamed(l net.Listener) net.Listener {
	if l == nil {
		return nil
	}
	return peerListener{l}
}

// ownerOnly has a Unix socket made with mode 0600: on Linux bind takes the mode of the
// socket itself.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var err error
	if ctl := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); ctl != nil {
		return ctl
	}
	return err
}

type peerListener struct{ net.Listener }

// Accept is net.Listener's.
func (l peerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	uid, ok := peerOf(c)
	if !ok {
		return c, nil
	}
	return peerConn{c, &peerAddr{Addr: c.RemoteAddr(), name: sync.OnceValue(func() string { return nameOf(uid) })}}, nil
}

// peerOf asks the kernel who connected (unix(7), SO_PEERCRED).
func peerOf(c net.Conn) (uid uint32, ok bool) {
	u, isUnix := c.(*net.UnixConn)
	if !isUnix {
		return 0, false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, false
	}
	var cred *syscall.Ucred
	err = raw.Control(func(fd uintptr) {
		if got, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			cred = got
		}
	})
	if err != nil || cred == nil {
		return 0, false
	}
	return cred.Uid, true
}

func nameOf(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil && userName.MatchString(u.Username) {
		return u.Username
	}
	return id
}

type peerConn struct {
	net.Conn
	from net.Addr
}

// RemoteAddr is net.Conn's.
func (c peerConn) RemoteAddr() net.Addr { return c.from }

// peerAddr looks the user up when it is asked and not while the listener waits: the
// system may ask a directory over the network.
type peerAddr struct {
	net.Addr
	name func() string
}

// String is net.Addr's.
func (a *peerAddr) String() string { return rest.LocalAddr(a.name()) }
