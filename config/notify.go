package config

import (
	"errors"
	"fmt"
	"net/mail"
	"net/url"
	"strings"

	"github.com/countersign-iot/countersign"
)

// Channel is a way by which alerts are sent: a webhook, a mail server or a syslog
// receiver.
type Channel struct {
	// Name is what operators call it: a-z, 0-9 and inner hyphens.
	Name string `yaml:"name"`

	// Kind is webhook, mail or syslog. A fleet's rule that says mail uses all mail
	// channels, and so on.
	Kind string `yaml:"kind"`

	// Severity sends every alert of at least this severity to the channel, whatever
	// the rules of its fleet say: info, low, medium, high or critical. Default: what
	// rules send, nothing else.
	Severity string `yaml:"severity"`

	// Fleets are those whose alerts the channel gets. Default: all, and what belongs to
	// no fleet.
	Fleets []string `yaml:"fleets"`

	// URL of a webhook: https, or http on loopback. Where it holds a secret itself,
	// put it into a file or a variable and write file:/path or env:NAME here.
	URL string `yaml:"url"`

	// Secret refers to the key with which a webhook's body is signed, at least 16
	// octets.
	Secret Secret `yaml:"secret"`

	// Addr is the host:port of the mail server or syslog receiver.
	Addr string `yaml:"addr"`

	// TLS is starttls (mail alone), on, or off, which is for loopback. Default:
	// starttls for mail, on for syslog.
	TLS string `yaml:"tls"`

	// Roots is a PEM file with the roots that the other side's certificate must
	// chain to. Default: the roots of the system.
	Roots string `yaml:"roots"`

	// Certificate and Key are PEM files with which the server shows itself to the
	// other side. Empty: it shows nothing.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`

	// Username and Password sign in at the mail server. The password is a reference.
	Username string `yaml:"username"`
	Password Secret `yaml:"password"`

	// From and To are the addresses of a mail: countersign@example.net.
	From string   `yaml:"from"`
	To   []string `yaml:"to"`
}

// The kinds of channel.
const (
	ChannelWebhook = "webhook"
	ChannelMail    = "mail"
	ChannelSyslog  = "syslog"
)

// What Channel.TLS may say.
const (
	TLSStart = "starttls"
	TLSOn    = "on"
	TLSOff   = "off"
)

const (
	// maxChannels keeps the notification of one alert short.
	maxChannels = 32
	// maxRecipients of one mail: more belong into a list of the mail server's.
	maxRecipients = 50
	// minHookSecret is what makes a signature worth it.
	minHookSecret = 16
)

// Endpoint returns the URL of a webhook. Its errors never show it.
func (c Channel) Endpoint() (string, error) {
	raw := c.URL
	if _, _, err := Secret(raw).split(); err == nil {
		if raw, err = Secret(raw).Resolve(); err != nil {
			return "", err
		}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
		return "", errors.New("the URL is neither https nor http on loopback")
	}
	return raw, nil
}

func (c Channel) withDefaults() Channel {
	if c.TLS == "" && c.Kind == ChannelMail {
		c.TLS = TLSStart
	}
	if c.TLS == "" && c.Kind == ChannelSyslog {
		c.TLS = TLSOn
	}
	return c
}

func (k *checker) channels(list []Channel) {
	if !k.within(len(list), maxChannels, "notify", "channels") {
		return
	}
	seen := map[string]bool{}
	for i, c := range list {
		at := fmt.Sprintf("notify[%d].", i)
		k.name(at+"name", c.Name, seen)
		if c.Severity != "" {
			k.oneOf(at+"severity", c.Severity, severities()...)
		}
		k.fleets(at+"fleets", c.Fleets)
		k.oneOf(at+"kind", c.Kind, ChannelWebhook, ChannelMail, ChannelSyslog)
		switch c.Kind {
		case ChannelWebhook:
			k.webhook(at, c)
		case ChannelMail:
			k.oneOf(at+"tls", c.TLS, TLSStart, TLSOn, TLSOff)
			k.peer(at, c)
			k.mail(at, c)
		case ChannelSyslog:
			k.oneOf(at+"tls", c.TLS, TLSOn, TLSOff)
			k.peer(at, c)
		}
		k.keyPair(at, c.Roots, c.Certificate, c.Key)
	}
}

func (k *checker) webhook(at string, c Channel) {
	_, err := c.Endpoint()
	k.add(at+"url", err)
	secret, err := c.Secret.Resolve()
	if err == nil && len(secret) < minHookSecret {
		err = fmt.Errorf("the secret has less than %d octets", minHookSecret)
	}
	k.add(at+"secret", err)
}

func (k *checker) peer(at string, c Channel) {
	host, err := checkPeer(c.Addr)
	if err != nil {
		k.add(at+"addr", fmt.Errorf("%.80q is not host:port", c.Addr))
		return
	}
	k.refuse(c.TLS == TLSOff && !isLoopback(host), at+"tls", "off is for loopback: what is sent shows an attacker what was found")
}

func (k *checker) mail(at string, c Channel) {
	k.add(at+"from", checkMail(c.From))
	k.refuse(len(c.To) == 0 || len(c.To) > maxRecipients, at+"to", "name 1 to %d recipients", maxRecipients)
	for _, to := range c.To {
		k.add(at+"to", checkMail(to))
	}
	password, err := c.Password.Resolve()
	k.add(at+"password", err)
	k.refuse(err == nil && (c.Username == "") != (password == ""), at+"username", "username and password go together: write both or none")
}

// checkMail takes the bare form of an address alone: it goes into commands and headers.
func checkMail(s string) error {
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s || strings.ContainsAny(s, "\r\n <>\"") {
		return fmt.Errorf("%.80q is no mail address of the form name@host", s)
	}
	return nil
}

func severities() (names []string) {
	for _, s := range countersign.Severities() {
		names = append(names, string(s))
	}
	return names
}
