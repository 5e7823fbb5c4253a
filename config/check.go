package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// Problem is one thing that is wrong with a Config.
type Problem struct {
	Field   string // path in the file: listeners.mqtt
	Message string // what is wrong and what to write instead
	File    string // where it was read; empty: it was not
	Line    int    // in that file; 0: not known
}

func (p Problem) Error() string {
	text := p.Field + ": " + p.Message
	switch {
	case p.File != "" && p.Line > 0:
		return p.File + ":" + strconv.Itoa(p.Line) + ": " + text
	case p.Line > 0:
		return "line " + strconv.Itoa(p.Line) + ": " + text
	}
	return text
}

// The bounds of times that are configured.
const (
	// maxOverlap is what a fleet may have: a quarter of a year, for devices that
	// wake up once a season.
	maxOverlap = 90 * 24 * time.Hour
	// minCRLValidity leaves time to publish and fetch before the list is stale.
	minCRLValidity = 10 * time.Minute
	// maxCRLValidity is the ten days that many validators will not exceed.
	maxCRLValidity = 10 * 24 * time.Hour
	// minOffline is longer than a failover that goes unnoticed takes.
	minOffline = time.Second
	// maxOffline is a day: what a node without its database does not know by then, it
	// must not go on without.
	maxOffline = 24 * time.Hour
	// minAuditEvery leaves the disk to the devices: an audit reads every certificate.
	minAuditEvery = time.Hour
	// maxAuditEvery is a month, the longest that AWS IoT Device Defender offers.
	maxAuditEvery = 31 * 24 * time.Hour
	// maxConnectTimeout bounds how long a silent peer holds a socket.
	maxConnectTimeout = 5 * time.Minute
	// maxPacket is what the edge is willing to hold for one session.
	maxPacket = Size(16 << 20)
	// minStorage holds an empty database and its log.
	minStorage = Size(16 << 20)
	// minReserve holds the log of one large transaction.
	minReserve = Size(4 << 20)
	// maxReserve is more than the revocation of a million devices needs.
	maxReserve = Size(1 << 30)
	// maxNetworks keeps the list one that is walked for each failure.
	maxNetworks = 256
	// maxNames keeps the server's certificate within one TLS record.
	maxNames = 64
)

// Check returns all problems of c, in the order of the fields. Secrets are resolved,
// because a missing one must be found before the start and not after it.
func (c Config) Check() []Problem {
	var k checker
	c = c.WithDefaults()
	k.database(c.Database)
	k.refuse(c.StorageLimit != 0 && c.StorageLimit < minStorage, "storage_limit", "%s is less than %s", c.StorageLimit, minStorage)
	k.refuse(c.Reserve < minReserve || c.Reserve > maxReserve, "reserve", "%s is not between %s and %s", c.Reserve, minReserve, maxReserve)
	k.listeners(c.Listeners)
	k.names(c.Names)
	if c.StatusURL != "" {
		k.add("status_url", checkStatusURL(c.StatusURL))
	}
	k.secret("root_passphrase", c.RootPassphrase)
	k.tunnels(c.Tunnels)
	k.hooks(c.Hooks, c.Listeners)
	k.channels(c.Notify)
	k.oidc(c.OIDC)
	k.origins(c.WebSocket.Origins)
	k.engine(c.Engine)
	k.limits(c.Limits)
	k.duration("overlap", c.Overlap, 0, maxOverlap)
	k.duration("crl_validity", c.CRLValidity, minCRLValidity, maxCRLValidity)
	k.duration("offline_sessions", c.OfflineSessions, minOffline, maxOffline)
	k.duration("audit.every", c.Audit.Every, minAuditEvery, maxAuditEvery)
	k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	k.oneOf("log.format", c.Log.Format, "auto", "text", "json")
	return k.problems
}

type checker struct{ problems []Problem }

// add notes err, if any, against field.
func (k *checker) add(field string, err error) {
	if err != nil {
		k.problems = append(k.problems, Problem{Field: field, Message: err.Error()})
	}
}

// refuse notes what is wrong with field, if bad holds.
func (k *checker) refuse(bad bool, field, format string, args ...any) {
	if bad {
		k.add(field, fmt.Errorf(format, args...))
	}
}

// within reports whether a list is at most as long as it may be, and refuses it otherwise.
func (k *checker) within(n, most int, field, what string) bool {
	k.refuse(n > most, field, "%d %s are more than %d", n, what, most)
	return n <= most
}

// name checks the name of an entry of a list; seen holds those before it.
func (k *checker) name(field, name string, seen map[string]bool) {
	k.add(field, countersign.CheckName(name))
	k.refuse(seen[name], field, "%.40q is taken", name)
	seen[name] = true
}

// fleets checks a list of names of fleets.
func (k *checker) fleets(field string, names []string) {
	for _, f := range names {
		k.add(field, countersign.CheckName(f))
	}
}

// keyPair checks that a certificate has its key, and that the PEM files of a connection
// are there.
func (k *checker) keyPair(at, roots, certificate, key string) {
	k.refuse((certificate == "") != (key == ""), at+"key", "certificate and key go together: write both or none")
	k.file(at+"roots", roots)
	k.file(at+"certificate", certificate)
	k.file(at+"key", key)
}

func (k *checker) secret(field string, s Secret) {
	_, err := s.Resolve()
	k.add(field, err)
}

func (k *checker) file(field, path string) {
	if path == "" {
		return
	}
	_, err := os.Stat(path)
	k.add(field, err)
}

func (k *checker) oneOf(field, value string, allowed ...string) {
	k.refuse(!slices.Contains(allowed, value), field, "%.40q is not one of %s", value, strings.Join(allowed, ", "))
}

func (k *checker) duration(field string, d, least, most time.Duration) {
	k.refuse(d < least || d > most, field, "%s is not between %s and %s", d, least, most)
}

func (k *checker) database(d Database) {
	u, err := d.Resolve()
	if err != nil {
		k.add("database", err)
		return
	}
	if u == "" {
		return
	}
	p, err := url.Parse(u)
	if !isPostgres(u) || err != nil || p.Host == "" && !p.Query().Has("host") {
		k.add("database", errors.New("not a URL of the form postgres://user@host/name; leave it out for the embedded database"))
		return
	}
	_, inUser := p.User.Password()
	k.refuse(!d.isReference() && (inUser || p.Query().Has("password")), "database", "holds a password: put the URL into a file and write file:/path")
}

func (k *checker) listeners(l Listeners) {
	seen := map[string]string{}
	for _, e := range []struct{ field, addr string }{
		{"listeners.enroll", l.Enroll},
		{"listeners.recovery", l.Recovery},
		{"listeners.mqtt", l.MQTT},
		{"listeners.websocket", l.WebSocket},
		{"listeners.hook", l.Hook},
		{"listeners.api", l.API},
		{"listeners.status", l.Status},
	} {
		if e.addr == Off {
			continue
		}
		if err := checkListen(e.addr); err != nil {
			k.add(e.field, err)
			continue
		}
		if other, taken := seen[e.addr]; taken && !strings.HasSuffix(e.addr, ":0") {
			k.add(e.field, fmt.Errorf("%s is taken by %s", e.addr, other))
		}
		seen[e.addr] = e.field
	}
}

// maxGrants bounds the list that each sign-in walks.
const maxGrants = 64

func (k *checker) oidc(o OIDC) {
	if o.Issuer == "" {
		k.refuse(o.ClientID != "" || len(o.Grants) > 0, "oidc.issuer", "is missing")
		return
	}
	u, err := url.Parse(o.Issuer)
	k.refuse(err != nil || u.Scheme != "https" || u.Host == "", "oidc.issuer", "%.80q is no https URL", o.Issuer)
	k.refuse(o.ClientID == "", "oidc.client_id", "is missing: a token that was issued to another client would do")
	k.file("oidc.roots", o.Roots)
	k.refuse(len(o.Grants) == 0 || len(o.Grants) > maxGrants, "oidc.grants", "%d grants are not between 1 and %d", len(o.Grants), maxGrants)
	for i, g := range o.Grants {
		field := fmt.Sprintf("oidc.grants[%d].", i)
		k.refuse(g.Claim == "", field+"claim", "is missing")
		k.oneOf(field+"role", g.Role, "viewer", "operator", "admin")
		k.fleets(field+"fleets", g.Fleets)
	}
}

// maxTunnels bounds the listeners of their kind.
const maxTunnels = 32

func (k *checker) tunnels(list []Tunnel) {
	k.within(len(list), maxTunnels, "tunnels", "tunnels")
	names := map[string]bool{"mqtt": true}
	for i, t := range list {
		field := fmt.Sprintf("tunnels[%d].", i)
		k.name(field+"name", t.Name, names)
		k.add(field+"listen", checkListen(t.Listen))
		k.add(field+"to", checkListen(t.To))
		k.refuse(strings.HasPrefix(t.To, ":") || strings.HasSuffix(t.To, ":0"), field+"to", "%.80q does not name a service: write host:port", t.To)
		k.fleets(field+"fleets", t.Fleets)
	}
}

// maxOrigins keeps the list one that is walked for each page that connects.
const maxOrigins = 64

func (k *checker) origins(list []string) {
	if !k.within(len(list), maxOrigins, "websocket.origins", "origins") {
		return
	}
	for i, o := range list {
		scheme, host, found := strings.Cut(o, "://")
		if !found {
			scheme, host = "https", o
		}
		_, err := path.Match(host, "")
		k.refuse(err != nil || host == "" || strings.ContainsAny(host, "/ \t") || scheme != "https" && scheme != "http", fmt.Sprintf("websocket.origins[%d]", i), "%.80q is no origin: write https://app.example.com", o)
	}
}

func checkListen(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%.80q is not host:port: write 127.0.0.1:8443, :8443 for all addresses, or off", addr)
	}
	if err := checkPort(port); err != nil {
		return err
	}
	if host == "" {
		return nil
	}
	return checkHost(host)
}

func checkPort(port string) error {
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %.20q is not a number from 0 to 65535", port)
	}
	return nil
}

// label is a DNS label as hosts use it (RFC 1123, 2.1).
var label = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	bad := len(host) > 253
	for l := range strings.SplitSeq(host, ".") {
		bad = bad || !label.MatchString(l)
	}
	if bad {
		return fmt.Errorf("%.80q is neither a DNS name nor an IP address", host)
	}
	return nil
}

func (k *checker) names(names []string) {
	if len(names) > maxNames {
		k.add("names", fmt.Errorf("%d names are more than the %d that fit a certificate", len(names), maxNames))
		return
	}
	for i, n := range names {
		k.add(fmt.Sprintf("names[%d]", i), checkHost(n))
	}
}

func checkStatusURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%.120q is not a URL of the form http://host:port", s)
	}
	if strings.HasSuffix(u.Path, "/") {
		return errors.New("ends in a slash: leave it out")
	}
	return nil
}

const (
	// minSessionExpiry outlasts the reconnect of a device that lost its link.
	minSessionExpiry = time.Minute
	// maxNode is a host name with room.
	maxNode = 64
)

func (k *checker) engine(e Engine) {
	if e.Kind == "nats" {
		k.add("engine.kind", errors.New("nats was replaced: write builtin, whose sessions and messages are in the database; those of nats are not read"))
		return
	}
	k.oneOf("engine.kind", e.Kind, EngineBuiltin, EngineBroker)
	k.refuse(e.SessionExpiry != 0 && e.SessionExpiry < minSessionExpiry, "engine.session_expiry", "%v is less than %v", e.SessionExpiry, minSessionExpiry)
	k.refuse(len(e.Node) > maxNode || strings.ContainsFunc(e.Node, func(r rune) bool { return r <= ' ' || r > '~' }), "engine.node", "%.80q is not a name of at most %d ASCII characters without blanks", e.Node, maxNode)
	k.refuse(e.QueueMessages < 0, "engine.queue_messages", "%d is less than 0", e.QueueMessages)
	if e.Kind == EngineBuiltin {
		k.refuse(e.Addr != "", "engine.addr", "only a broker has one: set engine.kind to broker")
		return
	}
	_, err := checkPeer(e.Addr)
	k.refuse(err != nil, "engine.addr", "%.80q is not the host:port of a broker", e.Addr)
	k.keyPair("engine.", e.Roots, e.Certificate, e.Key)
	for i, path := range []string{e.Roots, e.Certificate, e.Key} {
		k.refuse(path != "" && !e.TLS, "engine."+[]string{"roots", "certificate", "key"}[i], "needs engine.tls: true")
	}
}

// checkPeer reads the host:port of a service that is connected to.
func checkPeer(addr string) (host string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		err = errors.Join(checkHost(host), checkPort(port))
	}
	return host, err
}

func (k *checker) limits(m Limits) {
	for _, n := range []struct {
		field string
		value int
	}{
		{"limits.max_connections", m.MaxConnections},
		{"limits.per_address", m.PerAddress},
		{"limits.handshakes", m.Handshakes},
	} {
		k.refuse(n.value < 1, n.field, "%d is less than 1", n.value)
	}
	k.networks(m.AllowNetworks)
	k.duration("limits.connect_timeout", m.ConnectTimeout, time.Second, maxConnectTimeout)
	k.refuse(m.Packet < 1024 || m.Packet > maxPacket, "limits.packet", "%s is not between 1KiB and %s", m.Packet, maxPacket)
}

func (k *checker) networks(list []string) {
	if len(list) > maxNetworks {
		k.add("limits.allow_networks", fmt.Errorf("%d networks are more than %d: write wider ones", len(list), maxNetworks))
		return
	}
	for i, s := range list {
		field := fmt.Sprintf("limits.allow_networks[%d]", i)
		p, err := countersign.ParseNetwork(s)
		if err == nil && p.Bits() == 0 {
			err = fmt.Errorf("%s is everybody: name the networks that you trust", s)
		}
		k.add(field, err)
	}
}
