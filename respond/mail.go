package respond

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/smtp"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
)

// sendMail hands the notice to the mail server (RFC 5321), over TLS from the start
// or from STARTTLS on (RFC 3207). Where the server does not offer it, nothing is sent.
func sendMail(ctx context.Context, c config.Channel, host string, n api.Notice) (err error) {
	server, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, c, c.TLS == config.TLSOn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // after QUIT there is nothing to lose
	client, err := smtp.NewClient(conn, server)
	if err != nil {
		return fmt.Errorf("greet the mail server: %w", err)
	}
	if err := client.Hello(cmp.Or(host, "localhost")); err != nil {
		return fmt.Errorf("greet the mail server: %w", err)
	}
	if c.TLS == config.TLSStart {
		if offered, _ := client.Extension("STARTTLS"); !offered {
			return errors.New("the mail server does not offer STARTTLS, and nothing is sent in the clear")
		}
		tlsConfig, err := tlsFor(c, server)
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
		if err := client.Auth(smtp.PlainAuth("", c.Username, password, server)); err != nil {
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
	if _, err := w.Write(mailOf(c, n)); err != nil {
		return fmt.Errorf("send the mail: %w", err)
	}
	if err := w.Close(); err != nil { // the server accepted it
		return fmt.Errorf("send the mail: %w", err)
	}
	_ = client.Quit() // it has the mail
	return nil
}

// mailOf is the notice as a mail (RFC 5322): plain text, marked as sent by a machine
// (RFC 3834) so that no machine answers.
func mailOf(c config.Channel, n api.Notice) []byte {
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
