package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"

	"github.com/countersign-iot/countersign"
)

// Hook is a broker or proxy of yours that asks who may connect and is informed whom to
// disconnect. It asks the hook listener under /hooks/<name>/. docs/brokers has a page
// for each kind.
type Hook struct {
	// Name is in the URL, in events and in metrics.
	Name string `yaml:"name"`

	// Kind is emqx, rabbitmq, vernemq, mosquitto, nats, generic, nginx or envoy.
	Kind string `yaml:"kind"`

	// Secret refers to what the caller must send as Bearer token or as password of HTTP
	// Basic, at least 20 characters. Of Secret, Device and Networks at least one must
	// be set, and the caller must fulfill all that are.
	Secret Secret `yaml:"secret"`

	// Device is the id of the device whose client certificate the caller must show.
	Device string `yaml:"device"`

	// Networks, or single addresses, that the caller must come from.
	Networks []string `yaml:"networks"`

	// Vouch takes the broker's word for devices whose certificates it verified itself,
	// where their name is all that it passes on. Default false.
	Vouch bool `yaml:"vouch"`

	// VHosts are the virtual hosts of RabbitMQ that devices may use. Default: /.
	VHosts []string `yaml:"vhosts"`

	// NATS is where the server answers the auth callout of NATS.
	NATS HookNATS `yaml:"nats"`

	// CRL keeps a file of CRLs fresh for a Mosquitto on this machine.
	CRL HookCRL `yaml:"crl"`

	// Kick is how the server has the broker disconnect clients. Empty: it does not.
	Kick HookKick `yaml:"kick"`
}

// HookNATS is how the server connects to NATS, and with what it signs.
type HookNATS struct {
	// URL is nats://host:port, or tls:// for a server that wants TLS.
	URL string `yaml:"url"`

	// User and Secret are those of auth_users in the account of auth_callout.
	User   string `yaml:"user"`
	Secret Secret `yaml:"secret"`

	// Roots is a PEM file with the roots of the NATS server's certificate. Default:
	// those of the system.
	Roots string `yaml:"roots"`

	// Seed refers to the nkey seed (SA…) of the issuer in auth_callout.
	Seed Secret `yaml:"seed"`

	// XKey refers to the seed (SX…) of the xkey in auth_callout. Empty: questions are
	// not encrypted, and NATS writes passwords into them.
	XKey Secret `yaml:"xkey"`

	// Account is the NATS account that devices get into.
	Account string `yaml:"account"`
}

// HookCRL is a file that another program on this machine reads.
type HookCRL struct {
	// File is written whenever a CRL is published: all lists, in PEM.
	File string `yaml:"file"`

	// PID is the file with the number of the process that gets SIGHUP after that.
	PID string `yaml:"pid"`
}

// HookKick is a broker's management interface.
type HookKick struct {
	// URL is that of the management API: https, or http on loopback; for Mosquitto
	// mqtts or mqtt on loopback; for NATS tls or nats.
	URL string `yaml:"url"`

	// User and Secret are those of HTTP Basic, of MQTT or of NATS. Without User, Secret is
	// sent as Bearer.
	User   string `yaml:"user"`
	Secret Secret `yaml:"secret"`

	// Roots is a PEM file with the roots of the broker's certificate. Default: those
	// of the system.
	Roots string `yaml:"roots"`
}

// The kinds of hook that differ in what they need.
const (
	hookMosquitto = "mosquitto"
	hookNATS      = "nats"
)

const (
	// maxHooks bounds the brokers and proxies.
	maxHooks = 64
	// leastHookSecret is what cannot be guessed over the network.
	leastHookSecret = 20
)

// Allowed are the networks of h that Check found nothing wrong with.
func (h Hook) Allowed() []netip.Prefix { return Limits{AllowNetworks: h.Networks}.Allowed() }

func (k *checker) hooks(list []Hook, l Listeners) {
	if !k.within(len(list), maxHooks, "hooks", "hooks") {
		return
	}
	names := map[string]bool{}
	for i, h := range list {
		field := fmt.Sprintf("hooks[%d].", i)
		k.name(field+"name", h.Name, names)
		k.oneOf(field+"kind", h.Kind, "emqx", "rabbitmq", "vernemq", hookMosquitto, hookNATS, "generic", "nginx", "envoy")
		if h.Kind != hookMosquitto && h.Kind != hookNATS {
			k.hookCaller(field, h)
			k.refuse(l.Hook == Off, "listeners.hook", "is off, and hook %.40q asks there", h.Name)
			k.refuse(h.Device != "" && l.PlainHook(), field+"device", "no certificate can be shown on loopback, where the hook listener speaks plain HTTP: use secret")
		}
		k.hookNATS(field, h)
		k.hookCRL(field, h)
		k.hookKick(field+"kick.", h)
	}
}

func (k *checker) hookCaller(field string, h Hook) {
	k.refuse(h.Secret == "" && h.Device == "" && len(h.Networks) == 0, field+"secret", "any caller would be accepted: set secret, device or networks")
	if h.Secret != "" {
		v, err := h.Secret.Resolve()
		if err == nil && len(v) < leastHookSecret {
			err = fmt.Errorf("is shorter than %d characters: make one with openssl rand -hex 32", leastHookSecret)
		}
		k.add(field+"secret", err)
	}
	if h.Device != "" {
		k.add(field+"device", countersign.CheckDeviceID(h.Device))
	}
	for j, n := range h.Networks {
		_, err := countersign.ParseNetwork(n)
		k.add(fmt.Sprintf("%snetworks[%d]", field, j), err)
	}
}

func (k *checker) hookNATS(field string, h Hook) {
	if h.Kind != hookNATS {
		k.refuse(h.NATS != (HookNATS{}), field+"nats", "is for kind nats alone")
		return
	}
	field += "nats."
	k.add(field+"url", checkHookURL(h.NATS.URL, "tls", "nats"))
	k.secret(field+"secret", h.NATS.Secret)
	k.secret(field+"seed", h.NATS.Seed)
	k.refuse(h.NATS.Seed == "", field+"seed", "is missing: nothing could be signed")
	k.secret(field+"xkey", h.NATS.XKey)
	k.refuse(h.NATS.Account == "", field+"account", "is missing: devices need an account to get into")
	k.file(field+"roots", h.NATS.Roots)
}

func (k *checker) hookCRL(field string, h Hook) {
	if h.CRL == (HookCRL{}) {
		return
	}
	k.refuse(h.Kind != hookMosquitto, field+"crl", "is for kind mosquitto alone")
	if h.CRL.File == "" {
		k.add(field+"crl.file", errors.New("is missing"))
		return
	}
	k.file(field+"crl.file", filepath.Dir(h.CRL.File))
}

func (k *checker) hookKick(field string, h Hook) {
	if h.Kick == (HookKick{}) {
		return
	}
	switch h.Kind {
	case "nginx", "envoy":
		k.add(field+"url", errors.New("a proxy keeps no sessions: it asks at each request"))
		return
	case hookMosquitto:
		k.add(field+"url", checkHookURL(h.Kick.URL, "mqtts", "mqtt"))
	case hookNATS:
		k.add(field+"url", checkHookURL(h.Kick.URL, "tls", "nats"))
	default:
		k.add(field+"url", checkHookURL(h.Kick.URL, "https", "http"))
	}
	k.secret(field+"secret", h.Kick.Secret)
	k.file(field+"roots", h.Kick.Roots)
}

// checkHookURL takes the safe scheme, and the plain one on loopback. NATS turns to TLS by
// itself where its server wants it, so its plain one is fine anywhere.
func checkHookURL(s, safe, plain string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !slices.Contains([]string{safe, plain}, u.Scheme) {
		return fmt.Errorf("is not a URL of the form %s://host:port", safe)
	}
	if u.Scheme == plain && plain != "nats" && !isLoopback(u.Hostname()) {
		return fmt.Errorf("%s shows the secret to the network: use %s", plain, safe)
	}
	return nil
}
