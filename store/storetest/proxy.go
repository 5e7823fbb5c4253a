package storetest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Proxy is a fault on demand between a server and PostgreSQL: a TCP proxy that reads
// enough of the protocol to lose the answer of one COMMIT. Without a fault it passes
// everything on. Its methods may be called from any goroutine; a fault that lasts ends
// with Heal.
type Proxy struct {
	url    string
	target string
	listen net.Listener

	mu       sync.Mutex
	conns    map[*proxied]struct{}
	gate     chan struct{} // closed: pass; open: hang
	refuse   bool
	silent   bool // new connections are silent
	noListen bool
	noWrites bool
	delay    time.Duration
	commits  []commitFault
}

// commitFault waits for the COMMIT of a transaction that sent the mark.
type commitFault struct {
	mark []byte
	drop bool // the server never gets it
	cut  bool // the database is gone with the answer
	done chan struct{}
}

// NewProxy starts a proxy in front of the PostgreSQL database at url, which must not
// ask for TLS. It stops with the test.
func NewProxy(t testing.TB, databaseURL string) *Proxy {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: u.Host, listen: l, conns: map[*proxied]struct{}{}, gate: make(chan struct{})}
	close(p.gate)
	u.Host = l.Addr().String()
	p.url = u.String()
	go p.serve()
	t.Cleanup(func() {
		_ = l.Close()
		p.Heal()
		p.Cut()
	})
	return p
}

// URL names the database through the proxy.
func (p *Proxy) URL() string { return p.url }

// Cut closes all connections and refuses new ones, as a server that was killed.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = true
	p.closeAll(func(*proxied) bool { return true })
}

// Hang passes nothing on and closes nothing, as a server whose disk does not answer.
// New connections are accepted, and hang too.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default: // it hangs
	}
}

// Silence passes nothing on over the connections that there are, and over those that
// are opened until Heal, and closes none of them, as a machine that is gone. Heal lets
// new connections pass; those stay silent for good.
func (p *Proxy) Silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = true
	for c := range p.conns {
		c.silent = true
	}
}

// CutNotices closes the connections that listen for notices, and each one that asks
// for them from now on. All others work.
func (p *Proxy) CutNotices() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noListen = true
	p.closeAll(func(c *proxied) bool { return c.listens })
}

// RefuseWrites closes each connection that begins a transaction, so that nothing is
// recorded. Reads work.
func (p *Proxy) RefuseWrites() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noWrites = true
}

// Delay holds each message of the server up.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Heal ends all faults. What hung goes on.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.silent, p.noListen, p.noWrites, p.delay, p.commits = false, false, false, false, 0, nil
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// LoseCommit has the next transaction that sends mark, in a statement or an argument,
// commit without an answer: the connection is closed once the server has committed.
// The channel is closed when that has happened.
func (p *Proxy) LoseCommit(mark string) <-chan struct{} {
	return p.fault(commitFault{mark: []byte(mark)})
}

// LoseCommitAndCut is LoseCommit with a Cut before the client can know of the loss: it
// cannot look up the outcome until Heal.
func (p *Proxy) LoseCommitAndCut(mark string) <-chan struct{} {
	return p.fault(commitFault{mark: []byte(mark), cut: true})
}

// DropCommit has the next transaction that sends mark lose its COMMIT before the
// server gets it: the connection is closed, and the server rolls back.
func (p *Proxy) DropCommit(mark string) <-chan struct{} {
	return p.fault(commitFault{mark: []byte(mark), drop: true})
}

func (p *Proxy) fault(f commitFault) <-chan struct{} {
	f.done = make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commits = append(p.commits, f)
	return f.done
}

func (p *Proxy) closeAll(which func(*proxied) bool) {
	for c := range p.conns {
		if which(c) {
			c.close()
		}
	}
}

func (p *Proxy) serve() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		go p.pass(client)
	}
}

// proxied is one connection. The proxy's lock owns its fields below mu.
type proxied struct {
	proxy          *Proxy
	client, server net.Conn
	once           sync.Once

	ended   chan struct{} // closed with the connection
	silent  bool          // for good
	listens bool
	sent    []byte       // since BEGIN
	losing  *commitFault // the server's next ReadyForQuery is lost
}

func (c *proxied) close() {
	_ = c.client.Close()
	_ = c.server.Close()
	c.once.Do(func() { close(c.ended) })
}

func (p *Proxy) pass(client net.Conn) {
	p.mu.Lock()
	refuse := p.refuse
	p.mu.Unlock()
	if refuse {
		_ = client.(*net.TCPConn).SetLinger(0)
		_ = client.Close()
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	c := &proxied{proxy: p, client: client, server: server, ended: make(chan struct{})}
	p.mu.Lock()
	if p.refuse {
		c.close()
	}
	if p.silent {
		c.silent = true
	}
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(c.up)
	wg.Go(c.down)
	wg.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// Requests without a type that may come first (PostgreSQL's manual, 55.7).
const (
	sslRequest    = 80877103
	gssencRequest = 80877104
)

// up passes on what the client sends.
func (c *proxied) up() {
	defer c.close()
	for {
		first, err := read(c.client, false)
		if err != nil || len(first) < 8 {
			return
		}
		c.wait()
		switch code := binary.BigEndian.Uint32(first[4:]); code {
		case sslRequest, gssencRequest:
			if _, err := c.client.Write([]byte("N")); err != nil {
				return
			}
			continue
		}
		if _, err := c.server.Write(first); err != nil {
			return
		}
		break
	}
	for {
		m, err := read(c.client, true)
		if err != nil {
			return
		}
		c.wait()
		if !c.sending(m) {
			return
		}
		if _, err := c.server.Write(m); err != nil {
			return
		}
	}
}

// down passes on what the server answers.
func (c *proxied) down() {
	defer c.close()
	for {
		m, err := read(c.server, true)
		if err != nil {
			return
		}
		c.wait()
		c.proxy.mu.Lock()
		delay, losing := c.proxy.delay, c.losing
		c.proxy.mu.Unlock()
		if delay > 0 {
			time.Sleep(delay)
		}
		if losing != nil {
			if m[0] != 'Z' { // not yet ReadyForQuery
				continue
			}
			if losing.cut {
				c.proxy.Cut()
			}
			c.close()
			close(losing.done)
			return
		}
		if _, err := c.client.Write(m); err != nil {
			return
		}
	}
}

// wait waits while the proxy hangs, and until its end where the connection is silent.
func (c *proxied) wait() {
	c.proxy.mu.Lock()
	gate, silent := c.proxy.gate, c.silent
	c.proxy.mu.Unlock()
	if silent {
		<-c.ended
	}
	<-gate
}

// sending notes what a message of the client is about; false ends the connection.
func (c *proxied) sending(m []byte) bool {
	p := c.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if m[0] != 'Q' {
		if len(p.commits) > 0 {
			c.sent = append(c.sent, m...)
		}
		return true
	}
	switch text := m[5:]; {
	case bytes.HasPrefix(text, []byte("BEGIN")):
		c.sent = nil
		return !p.noWrites
	case bytes.HasPrefix(text, []byte("LISTEN")):
		c.listens = true
		return !p.noListen
	case bytes.HasPrefix(text, []byte("COMMIT")):
		for i, f := range p.commits {
			if !bytes.Contains(c.sent, f.mark) {
				continue
			}
			p.commits = append(p.commits[:i:i], p.commits[i+1:]...)
			if f.drop {
				close(f.done)
				return false
			}
			c.losing = &f
			break
		}
	}
	return true
}

// maxMessage bounds a message of the protocol: more than the longest row.
const maxMessage = 64 << 20

// read reads one message, with or without its type.
func read(from io.Reader, typed bool) ([]byte, error) {
	head := 4
	if typed {
		head = 5
	}
	m := make([]byte, head)
	if _, err := io.ReadFull(from, m); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(m[head-4:])) - 4
	if n < 0 || n > maxMessage {
		return nil, io.ErrUnexpectedEOF
	}
	m = append(m, make([]byte, n)...)
	_, err := io.ReadFull(from, m[head:])
	return m, err
}
