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
	// minOffline is longer than a failover that nobody notices takes.
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

// Check tells all problems of c at once, in the order of the fields. Secrets are
// resolved, since a server that starts and then misses one helps nobody.
func (c Config) Check() []Problem {
	var k checker
	c = c.WithDefaults()
	k.database(c.Database)
	if c.StorageLimit != 0 && c.StorageLimit < minStorage {
		k.add("storage_limit", fmt.Errorf("%s is less than %s", c.StorageLimit, minStorage))
	}
	if c.Reserve < minReserve || c.Reserve > maxReserve {
		k.add("reserve", fmt.Errorf("%s is not between %s and %s", c.Reserve, minReserve, maxReserve))
	}
	k.listeners(c.Listeners)
	k.names(c.Names)
	if c.StatusURL != "" {
		k.add("status_url", checkStatusURL(c.StatusURL))
	}
	if _, err := c.RootPassphrase.Resolve(); err != nil {
		k.add("root_passphrase", err)
	}
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

func (k *checker) oneOf(field, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		k.add(field, fmt.Errorf("%.40q is not one of %s", value, strings.Join(allowed, ", ")))
	}
}

func (k *checker) duration(field string, d, least, most time.Duration) {
	if d < least || d > most {
		k.add(field, fmt.Errorf("%s is not between %s and %s", d, least, most))
	}
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
	if !d.isReference() && (inUser || p.Query().Has("password")) {
		k.add("database", errors.New("holds a password: put the URL into a file and write file:/path"))
	}
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
		if o.ClientID != "" || len(o.Grants) > 0 {
			k.add("oidc.issuer", errors.New("is missing"))
		}
		return
	}
	u, err := url.Parse(o.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		k.add("oidc.issuer", fmt.Errorf("%.80q is no https URL", o.Issuer))
	}
	if o.ClientID == "" {
		k.add("oidc.client_id", errors.New("is missing: a token made out to somebody else would do"))
	}
	if o.Roots != "" {
		if _, err := os.Stat(o.Roots); err != nil {
			k.add("oidc.roots", err)
		}
	}
	if len(o.Grants) == 0 || len(o.Grants) > maxGrants {
		k.add("oidc.grants", fmt.Errorf("%d grants are not between 1 and %d", len(o.Grants), maxGrants))
	}
	for i, g := range o.Grants {
		field := fmt.Sprintf("oidc.grants[%d].", i)
		if g.Claim == "" {
			k.add(field+"claim", errors.New("is missing"))
		}
		k.oneOf(field+"role", g.Role, "viewer", "operator", "admin")
		for _, f := range g.Fleets {
			k.add(field+"fleets", countersign.CheckName(f))
		}
	}
}

// maxTunnels bounds the listeners of their kind.
const maxTunnels = 32

func (k *checker) tunnels(list []Tunnel) {
	if len(list) > maxTunnels {
		k.add("tunnels", fmt.Errorf("%d tunnels are more than %d", len(list), maxTunnels))
	}
	names := map[string]bool{"mqtt": true}
	for i, t := range list {
		field := fmt.Sprintf("tunnels[%d].", i)
		k.add(field+"name", countersign.CheckName(t.Name))
		if names[t.Name] {
			k.add(field+"name", fmt.Errorf("%.40q is taken", t.Name))
		}
		names[t.Name] = true
		k.add(field+"listen", checkListen(t.Listen))
		k.add(field+"to", checkListen(t.To))
		if strings.HasPrefix(t.To, ":") || strings.HasSuffix(t.To, ":0") {
			k.add(field+"to", fmt.Errorf("%.80q does not name a service: write host:port", t.To))
		}
		for _, f := range t.Fleets {
			k.add(field+"fleets", countersign.CheckName(f))
		}
	}
}

// maxOrigins keeps the list one that is walked for each page that connects.
const maxOrigins = 64

func (k *checker) origins(list []string) {
	if len(list) > maxOrigins {
		k.add("websocket.origins", fmt.Errorf("%d origins are more than %d", len(list), maxOrigins))
		return
	}
	for i, o := range list {
		scheme, host, found := strings.Cut(o, "://")
		if !found {
			scheme, host = "https", o
		}
		_, err := path.Match(host, "")
		if err != nil || host == "" || strings.ContainsAny(host, "/ \t") || scheme != "https" && scheme != "http" {
			k.add(fmt.Sprintf("websocket.origins[%d]", i), fmt.Errorf("%.80q is no origin: write https://app.example.com", o))
		}
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
	if e.SessionExpiry != 0 && e.SessionExpiry < minSessionExpiry {
		k.add("engine.session_expiry", fmt.Errorf("%v is less than %v", e.SessionExpiry, minSessionExpiry))
	}
	if len(e.Node) > maxNode || strings.ContainsFunc(e.Node, func(r rune) bool { return r <= ' ' || r > '~' }) {
		k.add("engine.node", fmt.Errorf("%.80q is not a name of at most %d ASCII characters without blanks", e.Node, maxNode))
	}
	if e.QueueMessages < 0 {
		k.add("engine.queue_messages", fmt.Errorf("%d is less than 0", e.QueueMessages))
	}
	if e.Kind == EngineBuiltin {
		if e.Addr != "" {
			k.add("engine.addr", errors.New("only a broker has one: set engine.kind to broker"))
		}
		return
	}
	host, port, err := net.SplitHostPort(e.Addr)
	if err == nil {
		err = errors.Join(checkHost(host), checkPort(port))
	}
	if err != nil {
		k.add("engine.addr", fmt.Errorf("%.80q is not the host:port of a broker", e.Addr))
	}
	if (e.Certificate == "") != (e.Key == "") {
		k.add("engine.key", errors.New("certificate and key go together: write both or none"))
	}
	for _, f := range []struct{ field, path string }{
		{"engine.roots", e.Roots}, {"engine.certificate", e.Certificate}, {"engine.key", e.Key},
	} {
		if f.path == "" {
			continue
		}
		if !e.TLS {
			k.add(f.field, errors.New("needs engine.tls: true"))
		}
		if _, err := os.Stat(f.path); err != nil {
			k.add(f.field, err)
		}
	}
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
		if n.value < 1 {
			k.add(n.field, fmt.Errorf("%d is less than 1", n.value))
		}
	}
	k.networks(m.AllowNetworks)
	k.duration("limits.connect_timeout", m.ConnectTimeout, time.Second, maxConnectTimeout)
	if m.Packet < 1024 || m.Packet > maxPacket {
		k.add("limits.packet", fmt.Errorf("%s is not between 1KiB and %s", m.Packet, maxPacket))
	}
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
