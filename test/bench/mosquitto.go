package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/test/kit"
)

const (
	crlFile        = "crl.pem"
	mosquittoFile  = "mosquitto.conf"
	mosquittoStore = "mosquitto"
)

// hasMosquitto reports whether the peer is installed.
func hasMosquitto() bool {
	_, err := mosquittoPath()
	return err == nil
}

// mosquittoPath also looks where Debian puts it and a user's PATH does not.
func mosquittoPath() (string, error) {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/mosquitto")
	}
	return path, err
}

// keeping is how the peer stores sessions and messages.
type keeping string

// The ways of mosquitto.conf(5). None syncs before PUBACK: with autosave_on_changes the
// peer writes its whole file anew before it waits for packets again, without it once a second.
const (
	nothingKept  keeping = "persistence false"
	keptEachTime keeping = "persistence true\nautosave_interval 1\nautosave_on_changes true"
	keptEachSec  keeping = "persistence true\nautosave_interval 1\nautosave_on_changes false"
)

// withoutDelay has the peer send at once. By default an answer waits 40 ms for the
// acknowledgment of what was sent before.
const withoutDelay keeping = "\nset_tcp_nodelay true"

// mosquittoConfig makes it check what we check: the path, a CRL, the name.
func mosquittoConfig(dir, port string, p peer) string {
	file := func(name string) string { return filepath.Join(dir, name) }
	lines := []string{
		"listener " + port + " 127.0.0.1",
		"cafile " + file(rootsFile), "certfile " + file(chainFile), "keyfile " + file(keyFile), "crlfile " + file(crlFile),
		"require_certificate true", "use_identity_as_username true",
		"allow_anonymous true", "max_connections -1",
		string(p.keep), "log_dest none",
		"max_queued_messages 0", // no bound: with one 2.0.11 drops messages long before it
	}
	if p.saves() {
		lines = append(lines, "persistence_location "+file(mosquittoStore)+"/")
	}
	if os.Getuid() == 0 {
		lines = append(lines, "user root") // else it cannot read our folder
	}
	return strings.Join(lines, "\n") + "\n"
}

// target is a broker that is measured.
type target struct {
	peer
	process *process
	addr    string
}

// peer is mosquitto with what it keeps; empty is our own server.
type peer struct {
	prefix string // of its names in the report
	keep   keeping
}

// saves reports whether the peer writes sessions and messages.
func (p peer) saves() bool { return strings.Contains(string(p.keep), "persistence true") }

// peers are the first, which keeps nothing, and those that write sessions and messages,
// after each change and once a second.
func peers() []peer {
	return []peer{{"mosquitto_", nothingKept}, {"mosquitto_each_", keptEachTime}, {"mosquitto_second_", keptEachSec}}
}

// startMosquitto runs the peer with Debian's defaults beside what mosquittoConfig writes,
// and nothing kept from before.
func startMosquitto(ctx context.Context, dir string, quiet time.Duration, p peer) (target, error) {
	path, err := mosquittoPath()
	if err != nil {
		return target{}, err
	}
	addr, err := freeAddr()
	if err != nil {
		return target{}, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return target{}, err
	}
	store := filepath.Join(dir, mosquittoStore)
	if err := errors.Join(os.RemoveAll(store), os.MkdirAll(store, 0o700)); err != nil { //nolint:gosec // our own folder
		return target{}, err
	}
	config := filepath.Join(dir, mosquittoFile)
	if err := os.WriteFile(config, []byte(mosquittoConfig(dir, port, p)), 0o600); err != nil { //nolint:gosec // our own folder
		return target{}, err
	}
	process, err := serve(ctx, addr, quiet, path, "-c", config)
	if err != nil {
		return target{}, err
	}
	return target{p, process, addr}, nil
}

// freeAddr returns a loopback address with a port that is free.
func freeAddr() (string, error) {
	port, err := kit.Port()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}
