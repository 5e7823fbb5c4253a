package respond

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/smtp"
	"os"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
)

// sendMail hands the notice to the mail server (RFC 5321), over TLS from the start
// or from STARTTLS on (RFC 3207). Where the server does not offer it, nothing is sent.
func (d *Responder) sendMail(ctx context.Context, c config.Channel, n api.Notice) (err error) {
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, c, c.TLS == config.TLSOn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // after QUIT there is nothing to lose
	client, err := smtp.NewClient(conn, host)
	if err != nil {
		return fmt.Errorf("greet the mail server: %w", err)
	}
	if err := client.Hello(helloName(d.Host)); err != nil {
		return fmt.Errorf("greet the mail server: %w", err)
	}
	if c.TLS == config.TLSStart {
		if offered, _ := client.Extension("STARTTLS"); !offered {
			return errors.New("the mail server does not offer STARTTLS, and nothing is sent in the clear")
		}
		tlsConfig, err := tlsFor(c, host)
		if err != nil {
			return err
		}
		if err := client.StartTLS(tlsConfig); err != nil {
			return fmt.Errorf("start TLS: %w", err)
		}
	}
	if c.Username != "" {
		password, err := c.Password.Resolve()
		if err != nil {
			return err
		}
		if err := client.Auth(smtp.PlainAuth("", c.Username, password, host)); err != nil {
			return fmt.Errorf("sign in at the mail server: %w", err)
		}
	}
	if err := client.Mail(c.From); err != nil {
		return fmt.Errorf("name the sender: %w", err)
	}
	for _, to := range c.To {
		if err := client.Rcpt(to); err != nil {
			return fmt.Errorf("name a recipient: %w", err)
		}
	}
	w, err := client.Data()
	if err != nil {
		return fmt.Errorf("send the mail: %w", err)
	}
	if _, err := w.Write(letter(c, n)); err != nil {
		return fmt.Errorf("send the mail: %w", err)
	}
	if err := w.Close(); err != nil { // the server's yes
		return fmt.Errorf("send the mail: %w", err)
	}
	_ = client.Quit() // it has the mail
	return nil
}

// helloName is a name that EHLO may carry.
func helloName(host string) string {
	if host == "" {
		return "localhost"
	}
	return host
}

// letter is the mail (RFC 5322): plain text, marked as sent by a machine (RFC 3834)
// so that no machine answers.
func letter(c config.Channel, n api.Notice) []byte {
	var b bytes.Buffer
	header := func(name, value string) { fmt.Fprintf(&b, "%s: %s\r\n", name, value) }
	header("From", c.From)
	header("To", strings.Join(c.To, ", "))
	header("Subject", mime.QEncoding.Encode("utf-8", oneLine(subject(n))))
	header("Date", n.At.Format(time.RFC1123Z))
	_, domain, _ := strings.Cut(c.From, "@")
	header("Message-ID", "<"+n.ID+"@"+domain+">")
	header("Auto-Submitted", "auto-generated")
	header("MIME-Version", "1.0")
	header("Content-Type", "text/plain; charset=utf-8")
	header("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\r\n")
	q := quotedprintable.NewWriter(&b)
	_, _ = q.Write([]byte(strings.ReplaceAll(text(n), "\n", "\r\n"))) // memory takes it
	_ = q.Close()
	return b.Bytes()
}

// oneLine keeps what devices and people wrote from making a header or line of its own.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// tlsFor is the TLS of a channel; server is the name that its certificate must have,
// empty where the caller's library takes it from the URL.
func tlsFor(c config.Channel, server string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: server}
	if c.Roots != "" {
		pem, err := os.ReadFile(c.Roots)
		if err != nil {
			return nil, fmt.Errorf("read the roots: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("the roots hold no certificate")
		}
	}
	if c.Certificate != "" {
		cert, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
		if err != nil {
			return nil, fmt.Errorf("read the certificate: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// dial connects to the address of a channel. The connection ends with ctx.
func dial(ctx context.Context, c config.Channel, encrypted bool) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("couldn't connect: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	if !encrypted {
		return conn, nil
	}
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	t, err := tlsFor(c, host)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	secure := tls.Client(conn, t)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("couldn't set up TLS: %w", err), conn.Close())
	}
	return secure, nil
}
