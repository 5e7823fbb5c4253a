package kit

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

const (
	// firstPort is above the ports of well-known services.
	firstPort = 10_000
	// lastPort is used where the system does not say from where its own ports begin.
	lastPort = 32_767
	// portTries bounds the ports that are tried: few of some 22,000 are taken.
	portTries = 100
)

// FreePort returns what [Port] does.
func FreePort(t TB) int {
	t.Helper()
	port, err := Port()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Port returns a port of loopback for a program that cannot choose one itself.
// It is below the range from which the system takes ports for listeners on port 0
// and for outgoing connections, so nothing is given it before the program starts,
// and no port is returned twice in one process.
func Port() (int, error) {
	last := lastPort
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var low int
		if _, err := fmt.Sscan(string(text), &low); err == nil && low > 2*firstPort {
			last = low - 1
		}
	}
	for range portTries {
		port := firstPort + rand.N(last-firstPort) //nolint:gosec // a port is no secret
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)) //nolint:noctx // at once
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port from %d to %d", firstPort, last)
}

// givenPorts are the ports that Port returned in this process.
var givenPorts sync.Map //nolint:gochecknoglobals // ports belong to the whole process
